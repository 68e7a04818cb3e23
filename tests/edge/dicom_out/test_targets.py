"""What becomes of objects that are sent over real associations and real HTTP."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import build_context
from starlette.responses import RedirectResponse, Response

from edge.dicom_out.deliver import open_target
from edge.dicom_out.targets import STOPPED, Sent, kind_of
from edge.settings.targets import DicomTarget, DicomWebTarget
from tests.dicom_peers import Pacs, StowService, stow_answer, write_object
from tests.pki import make_pki

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

LOCALHOST = "subjectAltName=IP:127.0.0.1"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two PDFs and a picture."""
    for name in ("a", "b"):
        write_object(tmp_path / f"{name}.dcm", name)
    write_object(tmp_path / "c.dcm", "c", sop_class=SecondaryCaptureImageStorage)
    return [tmp_path / f"{name}.dcm" for name in "abc"]


def node(port: int, **settings: Any) -> DicomTarget:
    return DicomTarget(
        kind="dicom", name="pacs", address=f"127.0.0.1:{port}", called_ae="PACS", **settings
    )


def service(url: str, **settings: Any) -> DicomWebTarget:
    return DicomWebTarget(kind="dicomweb", name="web", url=url, **settings)


def send(to: DicomTarget | DicomWebTarget, files: list[Path]) -> Sent:
    return open_target(to).send(files, lambda: False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def second(status: int | Dataset) -> Callable[[Dataset], int | Dataset]:
    """Answers the picture with this status, all else with success."""
    return lambda d: status if d.SOPClassUID == SecondaryCaptureImageStorage else 0x0000


def failing(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status, status.ErrorComment = code, comment
    return status


def test_all_objects_arrive_over_one_association(files: list[Path]) -> None:
    with Pacs().running() as pacs:
        assert open_target(node(pacs.port)).echo() == ""
        sent = send(node(pacs.port), files)
    assert sent == Sent(("a.dcm", "b.dcm", "c.dcm"))
    assert len(pacs.received) == 3
    assert pacs.associations == 2


def test_a_warning_counts_as_success(files: list[Path]) -> None:
    with Pacs(answer=second(0xB000)).running() as pacs:
        assert send(node(pacs.port), files).stored == ("a.dcm", "b.dcm", "c.dcm")


def test_a_refused_object_has_status_and_comment_and_the_others_arrive(files: list[Path]) -> None:
    with Pacs(answer=second(failing(0xA900, "no such class here"))).running() as pacs:
        sent = send(node(pacs.port), files)
    assert sent.stored == ("a.dcm", "b.dcm")
    assert sent.unreachable == ""
    words = "Data Set Does Not Match SOP Class (0xA900): no such class here"
    assert {name: str(why) for name, why in sent.refused.items()} == {"c.dcm": words}


def test_a_class_without_a_context_is_refused(files: list[Path]) -> None:
    contexts = [build_context("1.2.840.10008.5.1.4.1.1.104.1")]
    with Pacs().running(contexts=contexts) as pacs:
        sent = send(node(pacs.port), files)
    assert sent.stored == ("a.dcm", "b.dcm")
    assert "does not accept objects of its class" in str(sent.refused["c.dcm"])


def test_a_full_target_takes_no_more(files: list[Path]) -> None:
    with Pacs(answer=lambda _: 0xA700).running() as pacs:
        sent = send(node(pacs.port), files)
    assert sent.unreachable == "Refused: Out of Resources (0xA700)"
    assert list(sent.refused) == ["a.dcm"]


def test_an_object_on_which_the_target_aborts_counts_as_refused(files: list[Path]) -> None:
    """Some abort with an object that they cannot handle; it must not block the others for ever."""
    aborts = lambda d: d.SOPClassUID == SecondaryCaptureImageStorage  # noqa: E731
    with Pacs(aborts=aborts).running() as pacs:
        sent = send(node(pacs.port), files)
    assert sent.stored == ("a.dcm", "b.dcm")
    assert "aborted, or did not answer" in sent.unreachable
    assert list(sent.refused) == ["c.dcm"]


def test_a_rejected_association_says_why(files: list[Path]) -> None:
    with Pacs().running(require_called_aet=True) as pacs:
        sent = send(node(pacs.port).model_copy(update={"called_ae": "OTHER"}), files)
    assert "rejects the association: Called AE title not recognised" in sent.unreachable
    assert "called_ae = OTHER" in sent.unreachable
    assert not sent.refused


def test_a_port_on_which_nobody_listens_is_unreachable(files: list[Path]) -> None:
    sent = send(node(free_port()), files)
    assert sent.unreachable.endswith(": Connection refused")
    assert (sent.stored, sent.refused) == ((), {})
    sent = send(service(f"http://127.0.0.1:{free_port()}"), files)
    assert sent.unreachable.endswith(": Connection refused")
    assert (sent.stored, sent.refused) == ((), {})


def test_a_silent_port_is_unreachable_within_the_time(files: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sent = send(node(port, timeout_s=0.2), files)
        assert sent.unreachable.endswith("ends the connection without an answer")
        web = service(f"http://127.0.0.1:{port}", timeout_s=0.2)
        assert "does not answer within 0.2 s" in send(web, files).unreachable


@pytest.mark.parametrize("kind", ["dicom", "dicomweb"])
def test_a_stop_leaves_the_rest_for_the_next_start(files: list[Path], kind: str) -> None:
    asked = iter([False, False, True])
    with Pacs().running() as pacs, StowService().running() as web:
        to = node(pacs.port) if kind == "dicom" else service(web.url)
        sent = open_target(to).send(files, lambda: next(asked))
    assert sent == Sent(("a.dcm", "b.dcm"), {}, STOPPED)


def pki(folder: Path) -> Path:
    return make_pki(folder, pacs=("CN=pacs", LOCALHOST), edge=("CN=edge", LOCALHOST))


def server_context(files: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files / "ca.pem")
    context.load_cert_chain(files / "pacs.pem", files / "pacs.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_dicom_target_with_mutual_tls(files: list[Path], tmp_path: Path) -> None:
    made = pki(tmp_path)
    own = {"ca": made / "ca.pem", "cert": made / "edge.pem", "key": made / "edge.key"}
    (tmp_path / "other").mkdir()
    strange = make_pki(tmp_path / "other") / "ca.pem"
    with Pacs().running(tls=server_context(made)) as pacs:
        assert len(send(node(pacs.port, tls=own), files).stored) == 3
        sent = send(node(pacs.port, tls=own | {"ca": strange}), files)
    assert "is not accepted: " in sent.unreachable


def test_a_dicomweb_target_with_mutual_tls_and_a_token(files: list[Path], tmp_path: Path) -> None:
    """The token is read with each request, because tokens are renewed."""
    made, token = pki(tmp_path), tmp_path / "token"
    own = {"ca": made / "ca.pem", "cert": made / "edge.pem", "key": made / "edge.key"}
    options = {"ssl_keyfile": made / "pacs.key", "ssl_certfile": made / "pacs.pem"}
    options |= {"ssl_ca_certs": made / "ca.pem"}
    with StowService(token="new").running(**options, ssl_cert_reqs=ssl.CERT_REQUIRED) as web:
        to = open_target(service(web.url, token_file=token, tls=own))
        assert to.echo() == f"token_file = {token}: No such file or directory"
        token.write_text("old\n")
        assert to.echo() == "HTTP 401 Unauthorized: check token_file, tls.cert and tls.key"
        assert "HTTP 401" in to.send(files, lambda: False).unreachable
        token.write_text("new\n")
        assert to.echo() == ""
        assert len(to.send(files, lambda: False).stored) == 3
        del own["ca"]
        assert "certificate is not accepted" in send(service(web.url, tls=own), files).unreachable
    assert set(web.hosts) == {web.url.split("/")[2]}  # with its port


def test_a_failed_sop_sequence_refuses_one_object(files: list[Path]) -> None:
    def answer(dataset: Dataset) -> Response | None:
        if dataset.SOPClassUID == SecondaryCaptureImageStorage:
            return stow_answer(dataset, "FailedSOPSequence", 409, 0x0122)
        return None

    with StowService(answer).running() as web:
        sent = send(service(web.url), files)
    assert sent.stored == ("a.dcm", "b.dcm")
    assert str(sent.refused["c.dcm"]) == "Refused: SOP Class Not Supported (0x0122)"


@pytest.mark.parametrize(
    ("answer", "refused", "unreachable"),
    [
        (lambda _: Response("bad part", 400), "HTTP 400 Bad Request: bad part", ""),
        (lambda _: Response(status_code=503), "", "HTTP 503 Service Unavailable"),
        (lambda _: Response(status_code=404), "", "HTTP 404 Not Found: check url"),
        (lambda _: RedirectResponse("https://x/", 302), "", "redirects to https://x/"),
        (lambda d: stow_answer(d, "FailedSOPSequence", 202, 0xA700), "Resources", "Resources"),
        (lambda d: stow_answer(d, "OtherFailuresSequence"), "the answer does not list it", ""),
    ],
)
def test_answers_of_a_service_are_sorted_by_who_is_at_fault(
    files: list[Path], answer: Callable[[Dataset], Response], refused: str, unreachable: str
) -> None:
    with StowService(answer).running() as web:
        sent = send(service(web.url), files[:1])
    assert sent.stored == ()
    assert [refused in str(why) for why in sent.refused.values()] == [True] * bool(refused)
    assert unreachable in sent.unreachable
    assert bool(sent.unreachable) == bool(unreachable)


def test_an_empty_answer_of_success_is_success(files: list[Path]) -> None:
    with StowService(lambda _: Response(status_code=200)).running() as web:
        assert send(service(web.url), files).stored == ("a.dcm", "b.dcm", "c.dcm")


def test_the_kind_of_an_object_is_that_of_its_class(files: list[Path]) -> None:
    assert [kind_of(file) for file in files] == ["pdf", "pdf", "capture"]
