"""What targets answer, sorted by who is at fault: C-STORE and STOW-RS."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)
from pynetdicom import build_context
from pynetdicom.association import Association
from starlette.responses import RedirectResponse, Response

from edge.dicom_out.deliver import open_target
from edge.dicom_out.targets import STOPPED, Sent, class_of, kind_of
from edge.settings.targets import DicomTarget, DicomWebTarget
from tests.dicom_peers import Pacs, StowService, stow_answer, write_object
from tests.edge.dicom_out.sites import pacs_at, web_at
from tests.edge.fake_cloud import free_port
from tests.pki import make_pki

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

LOCALHOST = "subjectAltName=IP:127.0.0.1"
ALL = ("a.dcm", "b.dcm", "c.dcm")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two PDFs and a picture."""
    folder = tmp_path_factory.mktemp("objects")
    for name in ("a", "b"):
        write_object(folder / f"{name}.dcm", name)
    write_object(folder / "c.dcm", "c", sop_class=SecondaryCaptureImageStorage)
    return [folder / name for name in ALL]


def send(to: DicomTarget | DicomWebTarget, files: list[Path]) -> Sent:
    return open_target(to).send(files, lambda: False)


def is_picture(dataset: Dataset) -> bool:
    return bool(dataset.SOPClassUID == SecondaryCaptureImageStorage)


def second(status: int | Dataset) -> Callable[[Dataset], int | Dataset]:
    """Answers the picture with this status, all else with success."""
    return lambda dataset: status if is_picture(dataset) else 0x0000


def failing(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status, status.ErrorComment = code, comment
    return status


MISMATCH = "Data Set Does Not Match SOP Class (0xA900): no such class"
PDF_ALONE = {"contexts": [build_context("1.2.840.10008.5.1.4.1.1.104.1")]}
CT_ALONE = {"contexts": [build_context("1.2.840.10008.5.1.4.1.1.2")]}
NOT_ACCEPTED = "does not accept objects of its class"


@pytest.mark.parametrize(
    ("pacs", "listening", "stored", "refused", "unreachable"),
    [
        (Pacs(), {}, 3, {}, ""),
        (Pacs(answer=second(0xB000)), {}, 3, {}, ""),
        (Pacs(answer=second(failing(0xA900, "no such class"))), {}, 2, {"c.dcm": MISMATCH}, ""),
        (Pacs(), PDF_ALONE, 2, {"c.dcm": NOT_ACCEPTED}, ""),
        (Pacs(), CT_ALONE, 0, dict.fromkeys(ALL, NOT_ACCEPTED), ""),
        (Pacs(answer=lambda _: 0xA700), {}, 0, {"a.dcm": "Refused: Out of Resources"},
         "Refused: Out of Resources (0xA700)"),
        # some abort with an object that they cannot handle: it must not block the others for ever
        (Pacs(aborts=is_picture), {}, 2, {"c.dcm": "aborted"}, "aborted, or did not answer"),
        (Pacs(), {"require_called_aet": True}, 0, {},
         "rejects the association: Called AE title not recognised"),
    ],
    ids=["success", "warning", "refused", "no context", "none at all", "full", "aborts", "title"],
)  # fmt: skip
def test_answers_of_a_pacs_are_sorted_by_who_is_at_fault(
    files: list[Path],
    pacs: Pacs,
    listening: dict[str, Any],
    stored: int,
    refused: dict[str, str],
    unreachable: str,
) -> None:
    """All objects go over one association."""
    title = "OTHER" if "require_called_aet" in listening else "PACS"
    with pacs.running(**listening):
        sent = send(pacs_at(pacs.port, called_ae=title), files)
        assert pacs.associations <= 1 + bool(sent.refused)  # it is asked what it has
        # it answers, also where it does not know verification
        assert title == "OTHER" or open_target(pacs_at(pacs.port)).echo() == ""
    assert sent.stored == ALL[:stored]
    assert sent.refused.keys() == refused.keys()
    assert all(words in str(sent.refused[name]) for name, words in refused.items())
    assert unreachable in sent.unreachable
    assert bool(sent.unreachable) == bool(unreachable)
    assert title == "PACS" or "called_ae = OTHER" in sent.unreachable


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A picture in JPEG, and its pixels."""
    path = tmp_path_factory.mktemp("compressed") / "a.dcm"
    write_object(path, "a", sop_class=SecondaryCaptureImageStorage)
    made = pydicom.dcmread(path)
    made.Rows, made.Columns, made.SamplesPerPixel, made.PlanarConfiguration = 16, 32, 3, 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PhotometricInterpretation = "YBR_FULL_422"
    picture = np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3)
    made.PixelData = encapsulate([cv2.imencode(".jpg", picture)[1].tobytes()])
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.save_as(path)
    return path, pydicom.dcmread(path).pixel_array.tobytes()


PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


@pytest.mark.parametrize("syntaxes", [[JPEGBaseline8Bit, *PLAIN], *([one] for one in PLAIN)])
def test_a_picture_is_decoded_for_an_archive_that_takes_no_compressed_ones(
    compressed: tuple[Path, bytes], syntaxes: list[str]
) -> None:
    """It is the same object, with the same pixels."""

    def answer(dataset: Dataset) -> int:
        got.append(dataset)
        return 0x0000

    got = list[Dataset]()
    contexts = [build_context(SecondaryCaptureImageStorage, syntaxes)]
    with Pacs(answer=answer).running(contexts=contexts) as pacs:
        assert send(pacs_at(pacs.port), [compressed[0]]).stored == ("a.dcm",)
    assert [one.file_meta.TransferSyntaxUID for one in got] == syntaxes[:1]
    assert [one.pixel_array.tobytes() for one in got] == [compressed[1]]
    assert got[0].SOPInstanceUID == pydicom.dcmread(compressed[0]).SOPInstanceUID


@pytest.mark.parametrize("refusal", [415, 0xC122])
def test_a_picture_is_decoded_for_a_service_that_takes_no_compressed_ones(
    compressed: tuple[Path, bytes], refusal: int
) -> None:
    def answer(dataset: Dataset) -> Response | None:
        if not dataset.file_meta.TransferSyntaxUID.is_compressed:
            got.append(dataset)
            return None
        if refusal == 415:
            return Response(status_code=refusal)
        return stow_answer(dataset, "FailedSOPSequence", 409, refusal)

    got = list[Dataset]()
    with StowService(answer).running() as web:
        assert send(web_at(web.url), [compressed[0]]).stored == ("a.dcm",)
    assert [one.pixel_array.tobytes() for one in got] == [compressed[1]]


def test_nobody_who_listens_is_unreachable(files: list[Path]) -> None:
    """And so is a port that is silent, within the time."""
    for to in (pacs_at(free_port()), web_at(f"http://127.0.0.1:{free_port()}")):
        sent = send(to, files)
        assert sent.unreachable.endswith(": Connection refused")
        assert (sent.stored, sent.refused) == ((), {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sent = send(pacs_at(port, timeout_s=0.2), files)
        assert sent.unreachable.endswith("ends the connection without an answer")
        web = web_at(f"http://127.0.0.1:{port}", timeout_s=0.2)
        assert "does not answer within 0.2 s" in send(web, files).unreachable


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label empty")])
def test_a_name_that_cannot_be_looked_up_is_unreachable(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    to = pacs_at(104)
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=error))
    assert open_target(to).echo() == send(to, files).unreachable
    assert "127.0.0.1:104 cannot be looked up" in send(to, files).unreachable


class Late(Event):
    """An event whose threads go on late, as on a machine with too few cores."""

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        time.sleep(0.05)
        return done


def test_no_response_is_lost_where_threads_are_late(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pynetdicom's own thread may then take a response that the sender waits for."""
    begin = Association.__init__

    def begin_late(self: Association, *given: Any) -> None:
        begin(self, *given)
        self._reactor_checkpoint = Late()
        self._reactor_checkpoint.set()

    monkeypatch.setattr(Association, "__init__", begin_late)
    with Pacs().running() as pacs:
        assert send(pacs_at(pacs.port, timeout_s=5.0), files * 3).unreachable == ""
    assert len(pacs.received) == 3 * len(files)


@pytest.mark.parametrize("kind", ["dicom", "dicomweb"])
def test_a_stop_leaves_the_rest_for_the_next_start(files: list[Path], kind: str) -> None:
    asked = iter([False, False, True])
    with Pacs().running() as pacs, StowService().running() as web:
        to = pacs_at(pacs.port) if kind == "dicom" else web_at(web.url)
        sent = open_target(to).send(files, lambda: next(asked))
    assert sent == Sent(("a.dcm", "b.dcm"), {}, STOPPED)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    (folder / "other").mkdir()
    make_pki(folder / "other")
    return make_pki(folder, pacs=("CN=pacs", LOCALHOST), edge=("CN=edge", LOCALHOST))


def own_files(pki: Path) -> dict[str, Path]:
    return {"ca": pki / "ca.pem", "cert": pki / "edge.pem", "key": pki / "edge.key"}


def test_a_dicom_target_with_mutual_tls(files: list[Path], pki: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "pacs.pem", pki / "pacs.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with Pacs().running(tls=context) as pacs:
        assert open_target(pacs_at(pacs.port, tls=own_files(pki))).echo() == ""
        assert len(send(pacs_at(pacs.port, tls=own_files(pki)), files).stored) == 3
        strange = own_files(pki) | {"ca": pki / "other" / "ca.pem"}
        sent = send(pacs_at(pacs.port, tls=strange), files)
    assert "is not accepted: " in sent.unreachable


def test_a_dicomweb_target_with_mutual_tls_and_a_token(
    files: list[Path], tmp_path: Path, pki: Path
) -> None:
    """The token is read with each request, because tokens are renewed."""
    token, own = tmp_path / "token", own_files(pki)
    options = {"ssl_keyfile": pki / "pacs.key", "ssl_certfile": pki / "pacs.pem"}
    options |= {"ssl_ca_certs": pki / "ca.pem"}
    with StowService(token="new").running(**options, ssl_cert_reqs=ssl.CERT_REQUIRED) as web:
        to = open_target(web_at(web.url, token_file=token, tls=own))
        assert to.echo() == f"token_file = {token}: No such file or directory"
        for unfit in ("", "old\nnew\n", "old new"):
            token.write_text(unfit)
            wrong = f"token_file = {token}: expected one line of 1 to 4096 ASCII characters"
            assert to.echo() == f"{wrong} without spaces"
            assert to.send(files, lambda: False).unreachable == f"{wrong} without spaces"
        token.write_text("old\n")
        assert to.echo().startswith("HTTP 401 Unauthorized: check token_file, ")
        assert "HTTP 401" in to.send(files, lambda: False).unreachable
        token.write_text("new\n")
        assert to.echo() == ""
        assert to.send(files, lambda: False).stored == ALL
        del own["ca"]
        assert "certificate is not accepted" in send(web_at(web.url, tls=own), files).unreachable
    assert set(web.hosts) == {web.url.split("/")[2]}  # with its port


@pytest.mark.parametrize(
    ("answer", "refused", "unreachable"),
    [
        (lambda _: Response("bad part", 400), "HTTP 400 Bad Request: bad part", ""),
        (lambda _: Response(status_code=503), "", "HTTP 503 Service Unavailable"),
        (lambda _: Response(status_code=404), "", "HTTP 404 Not Found: check url"),
        (lambda _: RedirectResponse("https://x/", 302), "", "redirects to https://x/"),
        (lambda d: stow_answer(d, "FailedSOPSequence", 202, 0xA700), "Resources", "Resources"),
        (lambda d: stow_answer(d, "FailedSOPSequence", 409, 0x0122),
         "Refused: SOP Class Not Supported (0x0122)", ""),
        (lambda d: stow_answer(d, "OtherFailuresSequence"), "the answer does not list it", ""),
        (lambda _: Response(status_code=200), "", ""),  # an empty answer of success is success
    ],
)  # fmt: skip
def test_answers_of_a_service_are_sorted_by_who_is_at_fault(
    files: list[Path], answer: Callable[[Dataset], Response], refused: str, unreachable: str
) -> None:
    with StowService(lambda d: answer(d) if is_picture(d) else None).running() as web:
        sent = send(web_at(web.url), files)
    assert sent.stored == (ALL[:2] if refused or unreachable else ALL)
    assert [refused in str(why) for why in sent.refused.values()] == [True] * bool(refused)
    assert unreachable in sent.unreachable
    assert bool(sent.unreachable) == bool(unreachable)


def test_the_kind_of_an_object_is_that_of_its_class(files: list[Path]) -> None:
    assert [kind_of(class_of(file)) for file in files] == ["pdf", "pdf", "capture"]
