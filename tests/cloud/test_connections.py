"""Connections of gRPC: those that say nothing, and too many of one caller."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.connections import kernel_form
from cloud.describe import fetch_description
from evaluation.hostile.clients import PREFACE
from process.tls import TlsFiles
from protos.errors import Unreachable
from protos.overread_pb2_grpc import OverreadStub
from tests.cloud.running import (
    RunningCloud,
    connected,
    make_roi,
    make_stream,
    read,
    run_cloud,
    unfinished,
    until,
)
from tests.pki import make_pki

MAX_CONNECTIONS, MAX_PER_CALLER, SILENT = 32, 8, 60
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.server.CALLER_CONNECTIONS", MAX_PER_CALLER)
    monkeypatch.setattr("cloud.server.CALLERS", MAX_CONNECTIONS // MAX_PER_CALLER)


@contextlib.contextmanager
def silent(cloud: RunningCloud, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as held:
        connections = []
        for _ in range(count):
            one = held.enter_context(connected(cloud.address))
            with contextlib.suppress(OSError):  # closed as one too many
                one.sendall(sent)
            connections.append(one)
        yield connections


def described(cloud: RunningCloud, credentials: grpc.ChannelCredentials | None) -> bool:
    try:
        fetch_description(cloud.address, credentials=credentials, timeout_s=5.0)
    except Unreachable:
        return False
    return True


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("sent", [b"", b"\x16", PREFACE + SETTINGS])
def test_silent_connections_lock_nobody_out(
    tmp_path: Path, *, encrypted: bool, sent: bytes
) -> None:
    """They have no certificate, and nobody else would get in before they end."""
    files: dict[str, Path] = {}
    credentials = None
    if encrypted:
        here = "subjectAltName=IP:127.0.0.1"
        pki = make_pki(tmp_path, server=("CN=server", here), client=("CN=client", here))
        files = {"cert": pki / "server.pem", "key": pki / "server.key", "ca": pki / "ca.pem"}
        own = TlsFiles(ca=files["ca"], cert=pki / "client.pem", key=pki / "client.key")
        credentials = grpc.ssl_channel_credentials(*own.current().contents)
    with run_cloud(max_streams=8, tls=files) as cloud, silent(cloud, SILENT, sent):
        until(lambda: described(cloud, credentials))


def test_a_connection_that_begins_no_call_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.server.HANDSHAKE_S", 0.2)
    with run_cloud() as cloud, silent(cloud, 1, b"PRI") as (one,):
        assert one.recv(1000) is not None
        with contextlib.suppress(ConnectionError):
            while one.recv(1000):
                pass


def test_in_a_crowd_the_newest_silent_connections_of_an_address_are_closed() -> None:
    with run_cloud(max_streams=8) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(make_roi(1))), timeout=60)
        until(lambda: cloud.taken == 1)
        until(lambda: cloud.count("connections_ratio") == 1 / MAX_PER_CALLER)
        with silent(cloud, MAX_CONNECTIONS // 4 - 1, b""):
            until(lambda: cloud.count("connections_ratio") == 1 / 4)  # no crowd: none is closed
            with silent(cloud, SILENT, b""):
                until(lambda: cloud.count("connections_ratio") > 1 / 4)
                left = (1 + MAX_PER_CALLER) / MAX_CONNECTIONS
                until(lambda: cloud.count("connections_ratio") == left)
                cloud.reader.gate.set()
                assert len(list(call)) == 3
                assert len(read(cloud, make_stream(make_roi(1)))) == 2


@contextlib.contextmanager
def studies(to: str, count: int, files: list[TlsFiles] | None = None) -> Iterator[list[Any]]:
    """Studies under way, each over a connection of its own."""
    alone = (("grpc.use_local_subchannel_pool", 1),)
    with contextlib.ExitStack() as held:
        calls = []
        for number in range(count):
            if files:
                own = grpc.ssl_channel_credentials(*files[number % len(files)].current().contents)
                channel = grpc.secure_channel(to, own, alone)
            else:
                channel = grpc.insecure_channel(to, alone)
            requests = held.enter_context(
                unfinished(*make_stream(make_roi(1), make_roi(2), budget_s=100.0)[:2])
            )
            stub = OverreadStub(held.enter_context(channel))
            calls.append(stub.Read(requests, timeout=120))  # type: ignore[call-overload]
        yield calls


@pytest.mark.parametrize("address", ["127.0.0.1", "[::]"])
def test_callers_behind_one_address_are_counted_by_their_certificates(
    tmp_path: Path, address: str
) -> None:
    """Beyond the limit of one, the error says it; studies under way go on."""
    few, many = MAX_PER_CALLER + 1, 2 * MAX_PER_CALLER
    names = [f"edge{number}" for number in range(many - few)]
    clients = {name: (f"CN={name}", f"subjectAltName=DNS:{name}") for name in names}
    pki = make_pki(tmp_path, server=("CN=server", "subjectAltName=IP:127.0.0.1"), **clients)
    tls = {"cert": pki / "server.pem", "key": pki / "server.key", "ca": pki / "ca.pem"}
    files = [
        TlsFiles(ca=tls["ca"], cert=pki / f"{name}.pem", key=pki / f"{name}.key") for name in names
    ]
    with run_cloud(tls=tls, address=f"{address}:0", max_streams=256) as cloud:
        to = f"127.0.0.1:{cloud.address.rpartition(':')[2]}"
        with studies(to, len(files) - 1, files[1:]) as own, studies(to, few, files[:1]) as shared:
            until(lambda: cloud.open_streams == many - 2)
            until(lambda: sum(call.done() for call in shared) == 1)
            (refused,) = (call for call in shared if call.done())
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.details() == (
                f"edge0 at 127.0.0.1 has {MAX_PER_CALLER} open connections, "
                f"the limit is {MAX_PER_CALLER}"
            )
            until(lambda: cloud.taken == many - 2)
            assert cloud.count("connections_ratio") == 1.0
            assert not any(call.done() for call in own)
            next(call for call in shared if not call.done()).cancel()
        with studies(to, MAX_PER_CALLER, files[:1]):  # those before are not counted
            until(lambda: cloud.open_streams == MAX_PER_CALLER)


def test_without_a_certificate_the_address_is_the_caller() -> None:
    with run_cloud(max_streams=256) as cloud, studies(cloud.address, MAX_PER_CALLER + 2) as calls:
        until(lambda: sum(call.done() for call in calls) == 2)
        assert cloud.open_streams == MAX_PER_CALLER
        assert "127.0.0.1 has 8 open connections" in next(c for c in calls if c.done()).details()


@pytest.mark.parametrize(
    ("peer", "written"),
    [
        ("ipv4:127.0.0.1:5000", "0100007F:1388"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5000", "0100007F:1388"),
        ("ipv6:[::1]:65535", "00000000000000000000000001000000:FFFF"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", "000080FE000000000000000001000000:0050"),
    ],
)
def test_a_peer_is_found_in_the_list_of_the_kernel(peer: str, written: str) -> None:
    assert kernel_form(peer) == written
