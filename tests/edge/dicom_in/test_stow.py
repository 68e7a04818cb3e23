"""The STOW-RS service, as senders of any kind meet it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from structlog.testing import capture_logs

from edge.dicom_in import stow
from edge.dicom_in.incoming import Limits
from edge.dicom_in.received import ReceivedStore
from edge.errors import BadSettings
from edge.settings.core import load_settings
from tests.edge.dicom_in.senders import (
    IMAGES,
    Port,
    names,
    on_their_way,
    received,
    settings_in,
    stow_port,
)
from tests.edge.running_agent import wait_until
from tests.imaging.small_ct import SmallCt, set_frames
from tests.pki import make_pki

BOUNDARY = "boundary-of-a-test"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with stow_port(tmp_path) as opened:
        yield opened


def file_of(image: Dataset) -> bytes:
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def changed(**attributes: object) -> Dataset:
    image = SmallCt().images()[0]
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def baseline() -> bytes:
    """An image in a transfer syntax that the reader does not decode."""
    image = changed()
    set_frames(image, "4.50", [b"\xff\xd8\xff\xd9"])
    return file_of(image)


def body(*parts: bytes, kind: str = "application/dicom", closed: bool = True) -> bytes:
    """A multipart body with these parts."""
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    end = f"--{BOUNDARY}--\r\n".encode() if closed else b""
    return b"".join(head + part + b"\r\n" for part in parts) + end


def post(
    port: Port, content: Any, path: str = "/dicom-web/studies", **headers: str
) -> httpx.Response:
    url = f"http://{port.address}{path}"
    return httpx.post(url, content=content, headers={"Content-Type": TYPE, **headers}, timeout=60)


def sequence(response: httpx.Response, tag: str) -> list[dict[str, Any]]:
    """The items of a sequence, each value by tag."""
    items = response.json().get(tag, {}).get("Value", [])
    return [{key: element["Value"][0] for key, element in item.items()} for item in items]


def stored(response: httpx.Response) -> list[str]:
    return [item["00081155"] for item in sequence(response, "00081199")]


def failures(response: httpx.Response) -> list[tuple[str, int]]:
    return [(i["00081155"], i["00081197"]) for i in sequence(response, "00081198")]


def test_a_client_of_dicomweb_stores_a_series(port: Port) -> None:
    images = SmallCt().images()
    for image in images:
        image.preamble = bytes(128)
    answer = DICOMwebClient(f"http://{port.address}/dicom-web").store_instances(images)
    assert [one.ReferencedSOPInstanceUID for one in answer.ReferencedSOPSequence] == [
        image.SOPInstanceUID for image in images
    ]
    assert list(received(port.inbox).values()) == [names(images)]
    assert port.counted("received_instances_total", way="stow") == len(images)


def test_the_files_are_stored_as_they_came(port: Port) -> None:
    response = post(port, body(*map(file_of, IMAGES)))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    assert stored(response) == [str(image.SOPInstanceUID) for image in IMAGES]
    for image in IMAGES:
        (file,) = port.inbox.glob(f"*/{image.SOPInstanceUID}.dcm")
        assert file.read_bytes() == file_of(image)


def test_a_body_in_chunks_of_any_size_is_the_same(port: Port) -> None:
    content = body(*map(file_of, IMAGES[:2]))
    assert post(port, (content[i : i + 7] for i in range(0, len(content), 7))).status_code == 200
    assert list(received(port.inbox).values()) == [names(IMAGES[:2])]


def test_the_study_in_the_path_is_that_of_the_instances(port: Port) -> None:
    other = changed(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.9")
    path = f"/dicom-web/studies/{IMAGES[0].StudyInstanceUID}"
    response = post(port, body(file_of(IMAGES[0]), file_of(other)), path)
    assert response.status_code == 202
    assert stored(response) == [str(IMAGES[0].SOPInstanceUID)]
    assert failures(response) == [("1.2.3.9", 0xA900)]
    assert post(port, body(), "/dicom-web/studies/1.2.x").status_code == 400
    assert post(port, body(), "/dicom-web/studies/..%2f..%2fetc").status_code in (400, 404)


def test_an_instance_again_is_stored_and_another_one_of_its_uid_is_not(port: Port) -> None:
    assert post(port, body(file_of(IMAGES[0]))).status_code == 200
    assert post(port, body(file_of(IMAGES[0]))).status_code == 200
    response = post(port, body(file_of(changed(PatientID="P2"))))
    assert response.status_code == 409
    assert failures(response) == [(str(IMAGES[0].SOPInstanceUID), 0x0111)]
    assert list(received(port.inbox).values()) == [names(IMAGES[:1])]


@pytest.mark.parametrize(
    ("part", "status", "reason"),
    [
        (b"no DICOM", 409, 0xC000),
        (b"", 409, 0xC000),
        (file_of(changed(SOPClassUID=MRImageStorage)), 409, 0x0122),
        (baseline(), 409, 0xC122),
        (bytes(1_100_000), 413, 0xA701),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(tmp_path: Path, part: bytes, status: int, reason: int) -> None:
    with stow_port(tmp_path, receive__max_instance_mb=1) as port:
        response = post(port, body(part))
        assert response.status_code == status
        items = sequence(response, "00081198") + sequence(response, "0008119A")
        assert [item["00081197"] for item in items] == [reason]
        assert received(port.inbox) == {}
        assert on_their_way(port.inbox) == []
        # with a good one beside it, that one is stored
        response = post(port, body(part, file_of(IMAGES[1])))
        assert response.status_code == 202
        assert stored(response) == [str(IMAGES[1].SOPInstanceUID)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": 'multipart/related; type="application/json"; boundary=x'}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content-Type": f'multipart/related; type="application/dicom"; boundary={"x" * 300}'},
         400),
        ({"Accept": "text/html"}, 406),
        ({"Accept": "application/dicom+json"}, 200),
    ],
)  # fmt: skip
def test_the_headers_of_a_request_are_checked(
    port: Port, headers: dict[str, str], status: int
) -> None:
    assert post(port, body(file_of(IMAGES[0])), **headers).status_code == status


def test_parts_of_another_media_type_are_not_stored(port: Port) -> None:
    assert post(port, body(file_of(IMAGES[0]), kind="image/jpeg")).status_code == 415
    assert received(port.inbox) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"noise" * 100, body(), body(file_of(IMAGES[0]), closed=False), body()[:-6],
     b"--" + BOUNDARY.encode() + b"\r\n" + b"A" * 100_000],
    ids=["empty", "noise", "no part", "not closed", "cut boundary", "long header"],
)  # fmt: skip
def test_a_body_that_is_no_message_is_refused(port: Port, content: bytes) -> None:
    assert post(port, content).status_code == 400
    assert on_their_way(port.inbox) == []
    assert post(port, body(file_of(IMAGES[1]))).status_code == 200


def test_only_the_store_transaction_is_there(port: Port) -> None:
    assert httpx.get(f"http://{port.address}/dicom-web/studies").status_code == 405
    assert httpx.post(f"http://{port.address}/").status_code == 404


def test_a_full_disk_is_service_unavailable(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.inbox.mkdir()
    store = ReceivedStore(settings.inbox, Limits.of(settings), free_bytes=lambda _: 0)
    with stow_port(tmp_path, store) as port:
        response = post(port, body(file_of(IMAGES[0])))
        assert response.status_code == 503
        assert [item["00081197"] for item in sequence(response, "0008119A")] == [0xA700]


def test_without_the_token_nothing_is_received(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    with stow_port(tmp_path, receive__stow__token_file=token) as port, capture_logs() as logs:
        content = body(file_of(IMAGES[0]))
        answer = post(port, content)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer 0123456789abcdee", "Basic 0123456789abcdef", "Bearer", "Bearer é"):
            assert post(port, content, Authorization=wrong.encode()).status_code == 401  # type: ignore[arg-type]
        assert received(port.inbox) == {}
        assert post(port, content, Authorization="Bearer 0123456789abcdef").status_code == 200
        assert port.counted("refused_associations_total", reason="unauthorized") == 5
    assert "0123456789abcde" not in str(logs)


@pytest.mark.parametrize("content", [None, b"", b"short", b"0123456789 abcdef"])
def test_a_token_that_is_none_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with (
        pytest.raises(BadSettings, match=r"receive\.stow\.token_file"),
        stow_port(tmp_path, receive__stow__token_file=token),
    ):
        pass


def test_a_taken_port_is_named(tmp_path: Path, port: Port) -> None:
    with (
        pytest.raises(BadSettings, match=r"^receive\.stow\.address = .*: Address already in use"),
        stow_port(tmp_path, receive__stow__address=port.address),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"address": "0.0.0.0:0"}, "everyone there could send"),
        ({"address": "0.0.0.0:0", "token_file": "token"}, "unencrypted"),
        ({"tls": {"ca": "ca.pem"}}, r"receive\.stow\.tls: ca requires cert and key"),
        ({"tls": {"cert": "a.pem"}}, "must be set together"),
    ],
)
def test_other_machines_need_a_token_or_certificate_and_tls(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(BadSettings, match=words):
        load_settings(receive={"stow": values})


def test_requests_beyond_the_limit_are_told_to_come_back(tmp_path: Path) -> None:
    with stow_port(tmp_path, receive__stow__max_requests=1) as port:
        with socket.create_connection(port.endpoint, 30) as first:
            head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
            content = body(file_of(IMAGES[0]))
            first.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:500])
            wait_until(lambda: on_their_way(port.inbox) != [])
            answer = post(port, body(file_of(IMAGES[1])))
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "10"
            first.sendall(content[500:])
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
        assert post(port, body(file_of(IMAGES[1]))).status_code == 200


def test_of_a_request_that_breaks_off_nothing_is_left(port: Port) -> None:
    with socket.create_connection(port.endpoint, 30) as sender:
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
        content = body(file_of(IMAGES[0]))
        sender.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + content[:500])
        wait_until(lambda: on_their_way(port.inbox) != [])
    wait_until(lambda: on_their_way(port.inbox) == [])
    assert post(port, body(file_of(IMAGES[0]))).status_code == 200


def test_a_sender_that_pauses_is_given_up(tmp_path: Path) -> None:
    with stow_port(tmp_path, receive__stow__timeout_s=1.0) as port:
        with socket.create_connection(port.endpoint, 30) as sender:
            head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
            sender.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + body(b"x")[:80])
            assert sender.recv(4096).startswith(b"HTTP/1.1 408")
        assert on_their_way(port.inbox) == []


def test_a_connection_without_a_request_is_closed(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "HEADERS_S", 0.2)
    with socket.create_connection(port.endpoint, 30) as silent:
        silent.sendall(b"POST /dicom-web/studies HTTP/1.1\r\n")
        with suppress(ConnectionError):
            assert silent.recv(10) == b""
    assert post(port, body(file_of(IMAGES[0]))).status_code == 200


def test_too_many_connections_are_closed(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(stow, "HEADERS_S", 1.0)
    silent = [socket.create_connection(port.endpoint, 30) for _ in range(10)]

    def is_served() -> bool:
        try:
            return post(port, body(file_of(IMAGES[0]))).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_served)
    for one in silent:
        one.close()


def test_noise_ends_its_connection_only(port: Port) -> None:
    for content in (os.urandom(2000), b"\x16\x03\x01" + bytes(500), b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(port.endpoint, 30) as sender:
            sender.sendall(content)
            sender.shutdown(socket.SHUT_WR)
            try:
                while sender.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert post(port, body(file_of(IMAGES[0]))).status_code == 200


def test_the_name_in_a_certificate_is_that_of_the_caller(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pki = make_pki(
        tmp_path_factory.mktemp("pki"),
        server=("CN=server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        client=("CN=pacs-1", "extendedKeyUsage=clientAuth"),
    )
    files = {"ca": pki / "ca.pem", "cert": pki / "server.pem", "key": pki / "server.key"}
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    with stow_port(tmp_path, receive__stow__tls=files) as port:
        url = f"https://localhost:{port.endpoint[1]}/dicom-web/studies"
        content, headers = body(file_of(IMAGES[0])), {"Content-Type": TYPE}
        with pytest.raises(httpx.TransportError):
            httpx.post(url, content=content, headers=headers, verify=context)
        context.load_cert_chain(pki / "client.pem", pki / "client.key")
        answer = httpx.post(url, content=content, headers=headers, verify=context)
        assert answer.status_code == 200
    (sidecar,) = port.inbox.glob("*/.received.json")
    assert '"caller": "pacs-1"' in sidecar.read_text()


def test_the_end_waits_for_no_sender_that_pauses(tmp_path: Path) -> None:
    with stow_port(tmp_path) as port:
        sender = socket.create_connection(port.endpoint, 30)
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
        sender.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + body(b"x")[:80])
        wait_until(lambda: on_their_way(port.inbox) != [])
    sender.close()
    assert on_their_way(port.inbox) == []
