"""Connections of gRPC: those that say nothing, and too many of one address."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cloud.describe import fetch_description
from evaluation.links.wire import PREFACE
from process.tls import TlsFiles
from protos.errors import Unreachable
from tests.cloud.running import RunningCloud, make_roi, make_stream, read, run_cloud, until
from tests.pki import make_pki

MOST, MOST_OF_ADDRESS, SILENT = 32, 8, 60
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.server.ADDRESS_CONNECTIONS", MOST_OF_ADDRESS)
    monkeypatch.setattr("cloud.server.ADDRESSES", MOST // MOST_OF_ADDRESS)


@contextlib.contextmanager
def silent(cloud: RunningCloud, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    host, _, port = cloud.address.rpartition(":")
    with contextlib.ExitStack() as held:
        connections = []
        for _ in range(count):
            one = held.enter_context(socket.create_connection((host, int(port)), timeout=60))
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


def test_of_one_address_the_newest_connections_are_closed() -> None:
    with run_cloud(max_streams=8) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(make_roi(1))), timeout=60)
        until(lambda: cloud.taken == 1)
        until(lambda: cloud.count("connections_ratio") == 1 / MOST_OF_ADDRESS)
        with silent(cloud, SILENT, b""):
            until(lambda: cloud.count("connections_ratio") == 1.0)
            cloud.reader.gate.set()
            assert len(list(call)) == 3
            assert len(read(cloud, make_stream(make_roi(1)))) == 2
