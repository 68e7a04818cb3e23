"""What both ports do alike, as senders of any kind meet it: C-STORE and STOW-RS."""

import json
import os
import shutil
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.dicom_in import scp, stow
from edge.dicom_in.part import ReceivePart
from edge.errors import BadSettings
from process.http import CannotListen
from tests.edge.dicom_in.senders import (
    ANYWHERE,
    DICOM,
    STOW,
    Door,
    Port,
    body,
    changed,
    file_of,
    names,
    new_images,
    on_their_way,
    post,
    settings_in,
)
from tests.edge.running_agent import agent_of, wait_until
from tests.pki import make_pki


@pytest.fixture(scope="module", params=[DICOM, STOW], ids=lambda door: door.way)
def door(request: pytest.FixtureRequest) -> Door:
    made: Door = request.param
    return made


@pytest.fixture(scope="module")
def port(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """One for all tests, each of which sends a series of its own."""
    root = tmp_path_factory.mktemp(door.way)
    with door.open(root, receive__max_instance_mb=1) as opened:
        yield opened


def test_a_series_is_stored_and_counted_with_its_sender_beside_it(door: Door, port: Port) -> None:
    images = new_images(3)
    before = port.counted("received_instances_total", way=door.way)
    assert door.send(port, *images) == [0, 0, 0]
    files = port.files(images)
    assert sorted(files) == names(images)
    assert port.counted("received_instances_total", way=door.way) == before + 3
    sidecar = json.loads(files[names(images)[0]].with_name(".received.json").read_bytes())
    assert (sidecar["way"], sidecar["peer"]) == (door.way, "127.0.0.1")
    assert sidecar.get("calling_ae", "SCANNER") == "SCANNER"


def test_a_duplicate_is_success_and_another_data_set_is_not(door: Door, port: Port) -> None:
    """Nor is an instance that is too large."""
    first, second = new_images()
    large = changed(first, PixelData=bytes(1_500_000))
    codes = door.send(port, large, first, first, changed(first, KVP=99), second)
    assert codes == [0xA701, 0, 0, 0x0111, 0]
    assert sorted(port.files([first])) == names([first, second])
    assert on_their_way(port.inbox) == []


def test_a_full_disk_is_out_of_resources_until_there_is_room(door: Door, port: Port) -> None:
    """By HTTP that is status 503."""
    images, refused = new_images(), {"way": door.way, "reason": "no room"}
    before, port.free[0] = port.counted("refused_instances_total", **refused), 500_000
    try:
        assert door.send(port, *images) == [0xA700, 0xA700]
        assert port.counted("refused_instances_total", **refused) == before + 2
        if door is STOW:
            assert post(port, body(file_of(images[0]))).status_code == 503
    finally:
        port.free[0] = 10**12
    assert door.send(port, *images) == [0, 0]


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize(
    "uid", ["../../etc/passwd", "1.2/3", "1.2.", ".1.2", "1..2", "", "1" * 65, "1.2\\3", "a.b"]
)
def test_a_uid_with_path_tricks_is_refused_and_not_logged(
    door: Door, port: Port, keyword: str, uid: str
) -> None:
    before = sorted(port.inbox.parent.rglob("*"))
    content = file_of(new_images(1, **{keyword: "1.9.9.9"})[0])
    raw = uid.encode() + b"\0" * (len(uid) % 2)
    at = content.rindex(b"UI\x08\x001.9.9.9\0")
    content = content[:at] + b"UI" + len(raw).to_bytes(2, "little") + raw + content[at + 12 :]
    with capture_logs() as logs:
        assert door.send(port, content) == [0xC001]
    assert sorted(port.inbox.parent.rglob("*")) == before
    (line,) = [line for line in logs if line["event"] == "instance refused"]
    assert line["reason"] == "UID"
    assert len(uid) < 8 or uid not in str(line)


def test_of_an_instance_that_breaks_off_nothing_is_left(door: Door, port: Port) -> None:
    images = new_images()
    end = door.begin(port, images[0])
    wait_until(lambda: on_their_way(port.inbox) != [])
    end()
    wait_until(lambda: on_their_way(port.inbox) == [])
    assert door.send(port, images[1]) == [0]
    assert sorted(port.files(images)) == names(images[1:])


def test_a_sender_that_pauses_is_given_up(door: Door, tmp_path: Path) -> None:
    with door.open(tmp_path, receive__timeout_s=1.0) as port:
        end = door.begin(port, new_images()[0])
        wait_until(lambda: on_their_way(port.inbox) != [])
        wait_until(lambda: on_their_way(port.inbox) == [])
        end()


def test_the_end_waits_for_no_sender_that_pauses_and_keeps_what_was_stored(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scp, "DRAIN_S", 0.2)
    monkeypatch.setattr(stow, "STOP_S", 0.5)
    images = new_images()
    with door.open(tmp_path) as port:
        assert door.send(port, images[0]) == [0]
        end = door.begin(port, images[1])
        wait_until(lambda: on_their_way(port.inbox) != [])
    end()
    assert sorted(port.files(images)) == names(images[:1])
    assert on_their_way(port.inbox) == []


NOISE = {
    "noise": bytes(range(256)) * 8,
    "TLS": b"\x16\x03\x01" + bytes(500),
    "HTTP": b"GET / HTTP/9.9\r\n\r\n",
    "a request of 4 GB": struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(1000),
    "an empty request": struct.pack(">BBL", 1, 0, 0),
    "a damaged request": struct.pack(">BBL", 1, 0, 200) + bytes(200),
    "data before a request": struct.pack(">BBL", 4, 0, 10) + bytes(10),
    "a release before a request": struct.pack(">BBL", 5, 0, 4) + bytes(4),
    "half a request": struct.pack(">BBL", 1, 0, 200) + bytes(50),
}


@pytest.mark.parametrize("content", NOISE.values(), ids=NOISE.keys())
def test_noise_ends_its_connection_and_the_next_sender_is_served(
    door: Door, port: Port, content: bytes
) -> None:
    with socket.create_connection(port.endpoint, 30) as sender, suppress(OSError):
        sender.sendall(content)
        sender.shutdown(socket.SHUT_WR)
        while sender.recv(4096):
            pass
    assert door.send(port, *new_images()) == [0, 0]


def test_silent_connections_do_not_keep_a_sender_out(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are too many are closed at once; the others when they ask for nothing."""
    monkeypatch.setattr(stow, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(stow, "HEADERS_S", 0.5)
    with door.open(tmp_path, max_open=1, receive__timeout_s=2.0) as port:
        silent = [socket.create_connection(port.endpoint, 30) for _ in range(40)]
        silent[0].sendall(b"POST /dicom-web/studies HTTP/1.1\r\n")
        images = new_images(1)

        def is_served() -> bool:
            with suppress(ConnectionError):
                return door.send(port, *images) == [0]
            return False

        wait_until(is_served)
        for one in silent:
            one.close()


def test_a_taken_port_is_named_with_its_setting(door: Door, port: Port, tmp_path: Path) -> None:
    with (
        pytest.raises((BadSettings, CannotListen), match="Address already in use") as error,
        door.open(tmp_path, address=port.address),
    ):
        pass
    assert port.address in str(error.value)
    assert f"receive.{door.way}.address" in str(error.value)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(
        tmp_path_factory.mktemp("pki"),
        server=("CN=server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        client=("CN=scanner-1", "extendedKeyUsage=clientAuth"),
    )


def test_with_tls_only_senders_with_a_certificate_are_served(
    door: Door, tmp_path: Path, pki: Path
) -> None:
    """Beside one that never makes its handshake."""
    files = {"ca": pki / "ca.pem", "cert": pki / "server.pem", "key": pki / "server.key"}
    context, without = (ssl.create_default_context(cafile=files["ca"]) for _ in range(2))
    context.load_cert_chain(pki / "client.pem", pki / "client.key")
    images = new_images()
    with door.open(tmp_path, tls=files) as port:
        stalled = socket.create_connection(port.endpoint, 30)
        assert door.send(port, images[0], tls=(context, "localhost")) == [0]
        for tls in ((without, "localhost"), None):
            with pytest.raises(ConnectionError):
                door.send(port, images[1], tls=tls)
        stalled.close()
        (file,) = port.files(images).values()
        if door is STOW:
            assert '"caller": "scanner-1"' in file.with_name(".received.json").read_text()


def test_a_renewed_certificate_is_used_by_the_next_connection(
    door: Door, tmp_path: Path, pki: Path
) -> None:
    """With the authority of the senders; a key without its certificate changes nothing."""
    sides = {"server": ("CN=x", "subjectAltName=DNS:localhost"), "client": ("CN=x", "nsComment=x")}
    new, live = tmp_path / "new", tmp_path / "live"
    shutil.copytree(pki, live)
    new.mkdir()
    make_pki(new, **sides)
    files = {"ca": live / "ca.pem", "cert": live / "server.pem", "key": live / "server.key"}

    def sender(folder: Path) -> tuple[ssl.SSLContext, str]:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
        return context, "localhost"

    images = new_images()
    with door.open(tmp_path, tls=files) as port:
        for name, old_is_served in (("server.key", True), ("ca.pem", True), ("server.pem", False)):
            shutil.copy(new / name, live / name)
            ways = (sender(pki), sender(new)) if old_is_served else (sender(new), sender(pki))
            assert door.send(port, images[0], tls=ways[0]) == [0]
            with pytest.raises(ConnectionError):
                door.send(port, images[1], tls=ways[1])


def test_files_of_tls_that_do_not_fit_stop_the_start(door: Door, tmp_path: Path, pki: Path) -> None:
    own = f"receive__{door.way}__"
    files = {"cert": pki / "server.pem", "key": pki / "client.key"}
    settings = settings_in(tmp_path, **{f"{own}address": ANYWHERE, f"{own}tls": files})
    with (
        pytest.raises(BadSettings, match=rf"receive\.{door.way}\.tls\..*cannot be used together"),
        ReceivePart(agent_of(settings)).opened(),
    ):
        os.abort()
