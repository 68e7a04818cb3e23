"""Several replicas behind one setting, each with a certificate of its own: real clouds."""

import shutil
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge.escalation.client import SecondReader, open_second_reader
from edge.link.channel import Diagnosis
from edge.settings.core import EdgeSettings, load_settings
from evaluation.load.traffic import noise
from evaluation.sleeping_cloud import program
from evaluation.world import free_ports, running_cloud
from process.tls import ServerTlsFiles
from protos.deadline import Deadline
from protos.messages import Roi
from tests.cloud.running import RunningCloud, make_roi, run_cloud, until
from tests.pki import make_pki

HOSTS = ("127.0.0.1", "localhost", "127.0.0.2")
ROIS = [make_roi(number) for number in range(3)]


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """The files in use; those of ``renewed`` are of another authority, which is trusted too."""
    for folder in (tmp_path / "live", tmp_path / "renewed"):
        folder.mkdir()
        names = {
            host: (f"CN={host}", f"subjectAltName={kind}:{host}")
            for host, kind in zip(HOSTS, ("IP", "DNS", "IP"), strict=True)
        }
        make_pki(folder, edge=("CN=edge", "extendedKeyUsage=clientAuth"), **names)
    with (tmp_path / "live" / "ca.pem").open("a") as trusted:
        trusted.write((tmp_path / "renewed" / "ca.pem").read_text())
    return tmp_path / "live"


def tls_of(live: Path, who: str, prefix: str = "tls__") -> dict[str, Any]:
    files = {"ca": live / "ca.pem", "cert": live / f"{who}.pem", "key": live / f"{who}.key"}
    return {f"{prefix}{name}": str(path) for name, path in files.items()}


@contextmanager
def cloud_at(host: str, live: Path) -> Iterator[RunningCloud]:
    """A cloud with mutual TLS; its certificate names this host alone."""
    tls = ServerTlsFiles.model_validate(tls_of(live, host, ""))
    address = f"{'127.0.0.1' if host == 'localhost' else host}:0"
    with run_cloud(tls=tls, address=address) as cloud:
        cloud.address = f"{host}:{cloud.address.rpartition(':')[2]}"
        yield cloud


def edge_of(live: Path, *addresses: str) -> EdgeSettings:
    tls = tls_of(live, "edge", "cloud__tls__")
    return load_settings(cloud__address=",".join(addresses), cloud__health_check_s=0.0, **tls)


@contextmanager
def reader_of(settings: EdgeSettings) -> Iterator[SecondReader]:
    with ExitStack() as held:
        yield open_second_reader(settings, held, time.monotonic)


def answered(
    reader: SecondReader, studies: int, rois: list[Roi] = ROIS, within_s: float = 30.0
) -> int:
    """How many studies are answered in full and in time."""
    count = 0
    for _ in range(studies):
        deadline = Deadline.after(within_s)
        result = reader.read_rois(rois, deadline, uuid.uuid4().hex)
        count += len(result.verdicts) == len(rois) and not deadline.passed
    return count


def renew(live: Path, *names: str) -> None:
    for name in names:
        shutil.copy(live.parent / "renewed" / name, live / name)


@pytest.mark.parametrize("other", HOSTS[1:])
def test_replicas_with_certificates_of_their_own_are_used_in_turn(other: str, live: Path) -> None:
    with cloud_at("127.0.0.1", live) as first, cloud_at(other, live) as second:
        with reader_of(edge_of(live, first.address, second.address)) as reader:
            until(lambda: answered(reader, 1) == 1 and 0 not in (first.taken, second.taken))
            before = first.taken, second.taken
            assert answered(reader, 20) == 20
        assert (first.taken - before[0], second.taken - before[1]) == (30, 30)


def test_a_replica_that_is_down_or_named_otherwise_is_left_out_and_the_reason_is_told(
    live: Path,
) -> None:
    (gone,) = free_ports(1)
    with cloud_at("127.0.0.1", live) as wrong, cloud_at("localhost", live) as right:
        misnamed = wrong.address.replace("127.0.0.1", "localhost")
        settings = edge_of(live, f"127.0.0.1:{gone}", misnamed, right.address)
        with reader_of(settings) as reader:
            assert answered(reader, 10) == 10
        reason = Diagnosis(settings.cloud.address or "", settings).reason()
        assert f"the service at {misnamed} does not name localhost" in reason


def test_renewed_certificates_are_used_from_the_next_connection_on(live: Path) -> None:
    """On both sides, once certificate and key fit; open studies end on their connections."""

    def shown(cloud: RunningCloud) -> str:
        host, port = cloud.address.split(":")
        return ssl.get_server_certificate((host, int(port)), timeout=60)

    with (
        cloud_at("127.0.0.1", live) as first,
        cloud_at("127.0.0.2", live) as second,
        reader_of(edge_of(live, first.address, second.address)) as reader,
        capture_logs() as logs,
    ):
        before = shown(first)
        first.reader.gate.clear()
        second.reader.gate.clear()
        studies, counts = [], list[int]()
        for _ in range(2):
            studies.append(Thread(target=lambda: counts.append(answered(reader, 1))))
            studies[-1].start()
        until(lambda: first.open_streams + second.open_streams == 2)
        renew(live, "127.0.0.1.pem", "edge.pem")  # and not yet their keys
        assert shown(first) == shown(first) == before
        first.reader.gate.set()
        second.reader.gate.set()
        assert answered(reader, 4) == 4
        said = [log for log in logs if log["event"] == "renewed certificate cannot be used"]
        assert len(said) == 2
        assert "tls.key = " in said[0]["reason"]
        renew(live, "127.0.0.1.key", "edge.key")
        assert answered(reader, 4) == 4
        assert shown(first) == (live.parent / "renewed" / "127.0.0.1.pem").read_text()
        for study in studies:
            study.join()
        assert counts == [1, 1]


@pytest.mark.long
def test_a_renewal_and_a_sigkill_cost_no_study(live: Path) -> None:
    """200 studies from six senders at two replicas: none is late or without an answer."""
    rois, counts, took = [noise(number) for number in range(4)], list[int](), program(20.0, 5.0)
    with ExitStack() as held:
        clouds = [
            held.enter_context(running_cloud(took, f"{host}:0", **tls_of(live, host)))
            for host in ("127.0.0.1", "127.0.0.2")
        ]
        settings = edge_of(live, *(cloud.address for cloud in clouds))

        def send() -> None:
            with reader_of(settings) as reader:
                for _ in range(34):
                    counts.append(answered(reader, 1, rois, within_s=5.0))

        senders = [Thread(target=send) for _ in range(6)]
        for sender in senders:
            sender.start()
        until(lambda: len(counts) > 50)
        renew(live, *(f"{host}{kind}" for host in (*HOSTS, "edge") for kind in (".pem", ".key")))
        until(lambda: len(counts) > 100)
        clouds[0].kill()
        until(lambda: len(counts) > 130)
        clouds[0].start()
        for sender in senders:
            sender.join()
    assert counts == [1] * 204
