from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from edge.budget import Budget
from edge.channel import open_channel
from edge.errors import BadSettings
from edge.escalate import Asking, Escalator
from edge.exchange import Escalated
from edge.link import Link
from edge.settings import EdgeSettings, load_settings
from protos.deadline import Deadline
from tests.edge.cases import SHAPE, box, plan_of
from tests.edge.fake_cloud import FakeCloud


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """An authority, and a certificate each for a service and for an edge, in a folder."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(("openssl", *arguments), cwd=tmp_path, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509")
    openssl(*new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
    for name in ("service", "edge"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(*new, *authority, "-subj", f"/CN={name}", *files)
    return tmp_path


def mutual_tls(pki: Path) -> grpc.ServerCredentials:
    """A service that lets in only whom the authority knows."""
    pair = ((pki / "service.key").read_bytes(), (pki / "service.pem").read_bytes())
    ca = (pki / "ca.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)


def ask(address: str, settings: EdgeSettings, budget_s: float = 5.0) -> Escalated:
    """One region escalated over a channel of these settings."""
    with open_channel(address, settings) as channel:
        second = Escalator(channel, Link(), Asking(SHAPE, reserve_s=0.1, attempts=1))
        return second.read(plan_of(0.5), box(), Budget(Deadline.after(budget_s)), "key")


def test_mutual_tls_carries_the_second_reading(pki: Path) -> None:
    """With authority, certificate and key the service answers."""
    settings = load_settings(
        tls_ca=pki / "ca.pem", tls_certificate=pki / "edge.pem", tls_key=pki / "edge.key"
    )
    with FakeCloud(credentials=mutual_tls(pki)) as cloud:
        assert list(ask(cloud.address, settings).verdicts) == [0]


def test_edge_without_certificate_is_not_let_in(pki: Path) -> None:
    """Neither plain nor without a certificate of its own does the edge get an answer."""
    with FakeCloud(credentials=mutual_tls(pki)) as cloud:
        for settings in (load_settings(), load_settings(tls_ca=pki / "ca.pem")):
            came = ask(cloud.address, settings, budget_s=1.0)
            assert came.verdicts == {}
            assert came.reason.startswith(("Unreachable: ", "DeadlinePassed: "))


def test_unreadable_certificate_is_named(tmp_path: Path) -> None:
    """A certificate file that is not there is a fault of the settings, with its name."""
    settings = load_settings(tls_ca=tmp_path / "absent.pem")
    with pytest.raises(BadSettings, match=r"absent\.pem: No such file"):
        open_channel("127.0.0.1:1", settings)
