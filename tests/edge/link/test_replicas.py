"""Several replicas behind one setting, each with a certificate of its own: real clouds."""

import shutil
import socket
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from structlog.testing import capture_logs

from cloud.connections import MAPPED, kernel_form
from edge.escalation.client import SecondReader, open_second_reader
from edge.link import replicas
from edge.link.channel import Diagnosis
from edge.link.replicas import Replica, rank
from edge.settings.core import EdgeSettings, load_settings
from evaluation.world import free_ports
from process.tls import ServerTlsFiles
from protos.deadline import Deadline
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


def answered(reader: SecondReader, studies: int) -> int:
    """How many studies are answered in full and in time."""
    count = 0
    for _ in range(studies):
        deadline = Deadline.after(30.0)
        result = reader.read_rois(ROIS, deadline, uuid.uuid4().hex)
        count += len(result.verdicts) == len(ROIS) and not deadline.passed
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
        assert f"the service at {misnamed} is not accepted" in reason


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


class Names:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.hosts = hosts
        monkeypatch.setattr("socket.getaddrinfo", self._look_up)
        monkeypatch.setattr(replicas, "LOST_S", 0.0)
        monkeypatch.setattr(replicas, "LOOK_UP_S", 0.0)

    def _look_up(self, host: str, port: str, **_: Any) -> list[Any]:
        if host == "localhost" and not self.hosts:
            raise socket.gaierror
        found = self.hosts if host == "localhost" else (host,)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, int(port))) for one in found]


def open_connections(*clouds: RunningCloud) -> list[bool]:
    """To which clouds a connection is open, as the kernel lists them."""
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    to = {local.removeprefix(MAPPED) for _, local, _, state, *_ in lines if state == "01"}
    return [kernel_form(f"ipv4:{cloud.server.address}") in to for cloud in clouds]


def test_an_edge_connects_to_few_of_the_replicas_behind_a_name(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes to others when those are down, and when the name leads elsewhere."""
    names = Names(monkeypatch, *(f"127.0.0.{number}" for number in range(1, 10)))
    with ExitStack() as held:
        tls = ServerTlsFiles.model_validate(tls_of(live, "localhost", ""))
        first = held.enter_context(run_cloud(tls=tls, address="127.0.0.1:0"))
        port = first.address.rpartition(":")[2]
        clouds = [first] + [
            held.enter_context(run_cloud(tls=tls, address=f"127.0.0.{number}:{port}"))
            for number in (2, 3, 4)  # the other five are down
        ]
        settings = edge_of(live, f"localhost:{port}")
        settings = settings.model_copy(
            update={"cloud": settings.cloud.model_copy(update={"replicas": 2})}
        )
        reader = held.enter_context(reader_of(settings))
        until(lambda: answered(reader, 1) == 1 and sum(open_connections(*clouds)) == 2)
        assert answered(reader, 10) == 10
        assert sum(open_connections(*clouds)) == 2
        names.hosts = ("127.0.0.3", "127.0.0.4", "127.0.0.9")
        until(lambda: answered(reader, 1) == 1 and not any(open_connections(*clouds[:2])))
        until(lambda: answered(reader, 1) == 1 and all(open_connections(*clouds[2:])))
        names.hosts = ()  # nothing is found: gRPC looks it up itself
        until(lambda: answered(reader, 1) == 1 and open_connections(*clouds)[0])


def test_every_replica_has_about_as_many_edges() -> None:
    """And where one of them goes, only its edges change to others."""
    known = [Replica(f"10.0.0.{number}:50051", "cloud:50051") for number in range(100)]

    def chosen(among: list[Replica]) -> list[list[Replica]]:
        return [
            sorted(among, key=lambda one: rank(one, f"edge {seed}"))[:4] for seed in range(1000)
        ]

    before, after = chosen(known), chosen(known[1:])
    edges = Counter(one for few in before for one in few)
    assert len(edges) == 100
    assert 15 < min(edges.values()) <= max(edges.values()) < 70
    moved = [few for few, now in zip(before, after, strict=True) if few != now]
    assert all(known[0] in few for few in moved)
    assert len(moved) == edges[known[0]]
