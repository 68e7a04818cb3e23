"""What is the STOW-RS service's own: requests, their bodies and answers, tokens."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.uid import MRImageStorage
from structlog.testing import capture_logs

from edge.errors import BadSettings
from edge.settings.core import load_settings
from tests.edge.dicom_in.senders import (
    BOUNDARY,
    STOW,
    TYPE,
    Port,
    body,
    changed,
    file_of,
    items,
    new_images,
    on_their_way,
    post,
    received,
)
from tests.edge.running_agent import wait_until
from tests.imaging.small_ct import SmallCt, set_frames


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """One for all tests, each of which sends a series of its own."""
    with STOW.open(tmp_path_factory.mktemp("stow"), receive__max_instance_mb=1) as opened:
        yield opened


def baseline() -> bytes:
    """An image in a transfer syntax that the reader does not decode."""
    (image,) = SmallCt(1).images()
    set_frames(image, "4.50", [b"\xff\xd8\xff\xd9"])
    return file_of(image)


def stored(response: httpx.Response) -> list[str]:
    return [item["00081155"] for item in items(response, "00081199")]


def test_a_body_in_chunks_of_any_size_is_stored_as_it_came(port: Port) -> None:
    images = new_images()
    content = body(*map(file_of, images))
    response = post(port, (content[i : i + 7] for i in range(0, len(content), 7)))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    assert stored(response) == [str(image.SOPInstanceUID) for image in images]
    files = port.files(images)
    for image in images:
        assert files[f"{image.SOPInstanceUID}.dcm"].read_bytes() == file_of(image)


def test_an_answer_has_an_empty_retrieve_url_of_study_and_instances(port: Port) -> None:
    """It is of type 2 (PS3.18, annex I): there, and empty, because nothing is retrieved here."""
    (image,) = new_images(1)
    for content, stored_instances in ((file_of(image), 1), (b"no DICOM", 0)):
        answer = post(port, body(content)).json()
        assert answer["00081190"] == {"vr": "UR"}
        found = answer.get("00081199", {}).get("Value", [])
        assert [item["00081190"] for item in found] == [{"vr": "UR"}] * stored_instances


def test_the_study_in_the_path_is_that_of_the_instances(port: Port) -> None:
    first, second = new_images()
    other = changed(second, StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.9")
    path = f"/dicom-web/studies/{first.StudyInstanceUID}"
    response = post(port, body(file_of(first), file_of(other)), path)
    assert response.status_code == 202
    assert stored(response) == [str(first.SOPInstanceUID)]
    (failure,) = items(response, "00081198")
    assert (failure["00081155"], failure["00081197"]) == ("1.2.3.9", 0xA900)
    assert post(port, body(), "/dicom-web/studies/1.2.x").status_code == 400
    assert post(port, body(), "/dicom-web/studies/..%2f..%2fetc").status_code in (400, 404)


@pytest.mark.parametrize(
    ("part", "status", "reason"),
    [
        (b"no DICOM", 409, 0xC000),
        (b"", 409, 0xC000),
        (bytes(128) + b"DICM", 409, 0xC001),
        (bytes(128) + b"DICM" + bytes(range(64)), 409, 0xC001),
        (file_of(SmallCt(1).images()[0])[:340], 409, 0xC001),
        (file_of(SmallCt(1, attributes={"SOPClassUID": MRImageStorage}).images()[0]), 409, 0x0122),
        (baseline(), 409, 0xC122),
        (bytes(1_100_000), 413, 0xA701),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(port: Port, part: bytes, status: int, reason: int) -> None:
    before = received(port.inbox)
    response = post(port, body(part))
    assert response.status_code == status
    failed = items(response, "00081198") + items(response, "0008119A")
    assert [item["00081197"] for item in failed] == [reason]
    assert (received(port.inbox), on_their_way(port.inbox)) == (before, [])
    # with a good one beside it, that one is stored
    (image,) = new_images(1)
    response = post(port, body(part, file_of(image)))
    assert response.status_code == 202
    assert stored(response) == [str(image.SOPInstanceUID)]


RELATED = 'multipart/related; type="application/dicom"'


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Content-Type", "application/dicom", 415),
        ("Content-Type", "multipart/form-data; boundary=x", 415),
        ("Content-Type", 'multipart/related; type="application/json"; boundary=x', 415),
        ("Content-Type", RELATED, 400),
        ("Content-Type", f"{RELATED}; boundary={'x' * 300}", 400),
        ("Accept", "text/html", 406),
        ("Accept", "application/dicom+json", 200),
    ],
)
def test_the_headers_of_a_request_are_checked(
    port: Port, name: str, value: str, status: int
) -> None:
    (image,) = new_images(1)
    assert post(port, body(file_of(image)), headers={name: value}).status_code == status


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"noise" * 100, 400), (body(), 400), (body(b"x", closed=False), 400),
     (body()[:-6], 400), (b"--" + BOUNDARY.encode() + b"\r\n" + b"A" * 100_000, 400),
     (body(file_of(SmallCt(1).images()[0]), kind="image/jpeg"), 415)],
    ids=["empty", "noise", "no part", "not closed", "cut boundary", "long header", "media type"],
)  # fmt: skip
def test_a_body_that_is_no_message_is_refused(port: Port, content: bytes, status: int) -> None:
    before = received(port.inbox)
    assert post(port, content).status_code == status
    assert (received(port.inbox), on_their_way(port.inbox)) == (before, [])
    assert STOW.send(port, *new_images()) == [0, 0]


def test_only_the_store_transaction_is_there(port: Port) -> None:
    assert httpx.get(f"http://{port.address}/dicom-web/studies").status_code == 405
    assert httpx.post(f"http://{port.address}/").status_code == 404


def test_without_the_token_nothing_is_received(tmp_path: Path) -> None:
    token, (image,) = tmp_path / "token", new_images(1)
    token.write_text("0123456789abcdef\n")
    with STOW.open(tmp_path, token_file=token) as port, capture_logs() as logs:
        content = body(file_of(image))
        answer = post(port, content)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer 0123456789abcdee", "Basic 0123456789abcdef", "Bearer", "Bearer é"):
            assert post(port, content, headers={"Authorization": wrong.encode()}).status_code == 401
        assert received(port.inbox) == {}
        right = {"Authorization": "Bearer 0123456789abcdef"}
        assert post(port, content, headers=right).status_code == 200
        assert port.counted("refused_associations_total", reason="unauthorized") == 5
    assert "0123456789abcde" not in str(logs)


@pytest.mark.parametrize("content", [None, b"", b"short", b"0123456789 abcdef", b"a" * 5000])
def test_a_token_that_is_none_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with (
        pytest.raises(BadSettings, match=r"receive\.stow\.token_file"),
        STOW.open(tmp_path, token_file=token),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "everyone there could send"),
        ({"token_file": "token"}, "unencrypted"),
        ({"tls": {"ca": "ca.pem"}}, "ca requires cert and key"),
    ],
)
def test_other_machines_need_a_token_or_certificate_and_tls(
    values: dict[str, object], words: str
) -> None:
    own = {f"receive__stow__{name}": value for name, value in values.items()}
    with pytest.raises(BadSettings, match=words):
        load_settings(receive__stow__address="0.0.0.0:0", **own)


def test_requests_beyond_the_limit_are_told_to_come_back(tmp_path: Path) -> None:
    first, second = new_images()
    with STOW.open(tmp_path, max_open=1) as port:
        with socket.create_connection(port.endpoint, 30) as sender:
            head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
            content = body(file_of(first))
            sender.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:500])
            wait_until(lambda: on_their_way(port.inbox) != [])
            answer = post(port, body(file_of(second)))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            sender.sendall(content[500:])
            assert sender.recv(4096).startswith(b"HTTP/1.1 200")
        assert STOW.send(port, second) == [0]
