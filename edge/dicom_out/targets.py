"""Send DICOM files to a target: by C-STORE to an AE, or by STOW-RS to a DICOMweb service.

What a target says is sorted by who may be at fault. An object that it *refuses* is at fault itself.
A target that is *unreachable* would take no other object either: nothing answers, or it does not
let this edge in. Where both is possible both is said: the target is full, or it ends the connection
while it gets an object, which some do with one that they cannot handle.
"""

import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import pydicom
import requests
import structlog
from dicomweb_client.web import DICOMwebClient
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import (
    STATUS_SUCCESS,
    STATUS_WARNING,
    STORAGE_SERVICE_CLASS_STATUS,
    code_to_category,
)
from urllib3.exceptions import NewConnectionError

from edge.dicom_out.settings import DicomTarget, DicomWebTarget, ObjectKind
from process.text import printable_line

MAX_REASON = 300
"""Characters of a target's own words that are kept."""

_UNAVAILABLE: frozenset[int] = frozenset({
    HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT, HTTPStatus.INSUFFICIENT_STORAGE,
})  # fmt: skip
"""HTTP statuses that say nothing about the object that was sent."""

_NO_SEARCH: frozenset[int] = frozenset({
    HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED,
})  # fmt: skip
"""HTTP statuses of a service without QIDO-RS."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Refusal:
    """Why a target refused an object.

    ``code`` is what the standard calls it; ``comment`` are the target's own words, which may name a
    patient and are never logged. ``is_full``: the target is out of resources.
    """

    code: str
    comment: str = ""
    is_full: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.comment}" if self.comment else self.code


@dataclass(frozen=True)
class Sent:
    """What became of files that were sent to a target.

    Attributes:
        stored: names of the files that it has accepted.
        refused: by name, why it refused a file.
        unreachable: why it took no more; empty if it answered for every file. A file may be among
            the refused ones too.
    """

    stored: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    unreachable: str = ""


class Target(Protocol):
    """A place to which objects are sent."""

    def send(self, files: Sequence[Path], stopped: Callable[[], bool]) -> Sent:
        """Send files, and return what became of each.

        ``stopped`` is asked between two files; the target counts as unreachable once it is true.

        Raises:
            OSError: a file cannot be read.
        """
        ...

    def echo(self) -> str:
        """Return why the target does not answer; empty if it does."""
        ...


def open_target(settings: DicomTarget | DicomWebTarget) -> Target:
    """Return the target of these settings; nothing is opened yet."""
    if isinstance(settings, DicomTarget):
        return DicomNode(settings)
    return DicomWebService(settings)


def kind_of(file: Path) -> ObjectKind | None:
    """Return which kind of object a DICOM file is; None for any other.

    Raises:
        OSError: it cannot be read.
    """
    name = pydicom.dcmread(file, specific_tags=["SOPClassUID"]).SOPClassUID.name
    for kind, words in _KIND_WORDS.items():
        if words in name:
            return kind
    return None


_KIND_WORDS: Mapping[ObjectKind, str] = {
    "sr": "SR Storage",
    "seg": "Segmentation Storage",
    "key-images": "Key Object Selection Document Storage",
    "capture": "Secondary Capture Image Storage",
    "pdf": "Encapsulated PDF Storage",
}
"""What the names of their SOP classes have in common (PS3.6, table A-1)."""


STOPPED = "the agent stops"


class DicomNode:
    """An application entity that stores what it gets by C-STORE."""

    def __init__(self, settings: DicomTarget) -> None:
        self._settings = settings

    def send(self, files: Sequence[Path], stopped: Callable[[], bool]) -> Sent:
        """Send files over one association; see `Target`."""
        stored, refused = list[str](), dict[str, Refusal]()
        contexts = _contexts(files)
        association, problem = self._associate(contexts)
        if association is None:
            return Sent(unreachable=problem)
        try:
            for number, file in enumerate(files, start=1):
                if stopped():
                    return Sent(tuple(stored), refused, STOPPED)
                try:
                    status = association.send_c_store(str(file), msg_id=number)
                except ValueError:  # of pynetdicom: no context for it was accepted
                    refused[file.name] = Refusal("the target does not accept objects of its class")
                    continue
                except RuntimeError:  # of pynetdicom: the association has ended before
                    return Sent(tuple(stored), refused, self._lost())
                if "Status" not in status:
                    refused[file.name] = Refusal(self._lost())
                    return Sent(tuple(stored), refused, self._lost())
                category = code_to_category(status.Status)
                if category in (STATUS_SUCCESS, STATUS_WARNING):
                    stored.append(file.name)
                    if category == STATUS_WARNING:
                        why = _status_words(status.Status)
                        log.warning("stored with a warning", target=self._settings.name, why=why)
                    continue
                refusal = Refusal(_status_words(status.Status), _words(status, "ErrorComment"))
                refused[file.name] = refusal
                if _is_full(status.Status):
                    return Sent(tuple(stored), refused, refusal.code)
            return Sent(tuple(stored), refused)
        finally:
            if association.is_established:
                association.release()

    def echo(self) -> str:
        """Verify the association by C-ECHO; see `Target`."""
        association, problem = self._associate([build_context(Verification)])
        if association is None:
            return problem
        try:
            status = association.send_c_echo()
            if "Status" not in status:
                return self._lost()
            return "" if status.Status == 0 else f"C-ECHO: {_status_words(status.Status)}"
        except ValueError:  # it accepts the association, and not verification: it answers
            return ""
        finally:
            if association.is_established:
                association.release()

    def _associate(self, contexts: list[PresentationContext]) -> tuple[Association | None, str]:
        """Return an established association, or None and why there is none."""
        target = self._settings
        entity = AE(ae_title=target.calling_ae)
        entity.connection_timeout = entity.acse_timeout = target.connect_s
        entity.dimse_timeout = entity.network_timeout = target.answer_s
        try:
            tls = self._tls_context()
        except (OSError, ValueError):
            return None, "; ".join(target.tls.problems()) or "the files of TLS cannot be used"
        association = entity.associate(
            target.host,
            target.port,
            contexts=contexts,
            ae_title=target.called_ae,
            tls_args=None if tls is None else (tls, target.host),
        )
        if association.is_established:
            return association, ""
        if association.is_rejected:
            answer = association.acceptor.primitive
            why = "" if answer is None else f": {answer.reason_str}"
            titles = f"called_ae = {target.called_ae}, calling_ae = {target.calling_ae}"
            return None, f"{target.address} rejects the association{why} ({titles})"
        if association.acceptor.primitive is not None:  # it answered, and no context is left
            accepted = association.accepted_contexts
            if not accepted and association.rejected_contexts:
                return None, f"{target.address} accepts none of the objects' classes"
        return None, self._why_no_connection(tls)

    def _tls_context(self) -> ssl.SSLContext | None:
        files = self._settings.tls
        if files.ca is None:
            return None
        context = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
        return context

    def _why_no_connection(self, tls: ssl.SSLContext | None) -> str:
        """Connect once more to find out: pynetdicom only logs why it could not."""
        target = self._settings
        try:
            place = (target.host, target.port)
            with socket.create_connection(place, target.connect_s) as connection:
                if tls is not None:
                    tls.wrap_socket(connection, server_hostname=target.host).close()
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of {target.address} is not accepted: {error.verify_message}"
        except ssl.SSLError as error:
            return f"{target.address} refuses TLS: {error.reason or error}"
        except TimeoutError:
            return f"{target.address} does not answer within {target.connect_s:g} s"
        except OSError as error:
            return f"{target.address}: {error.strerror or error}"
        return f"{target.address} ends the connection without an answer"

    def _lost(self) -> str:
        target = self._settings
        return f"{target.address} aborted, or did not answer within {target.answer_s:g} s"


class DicomWebService:
    """A DICOMweb service that stores what it gets by STOW-RS, one object a request.

    With one object a request, a refusal is always that of one object.
    """

    def __init__(self, settings: DicomWebTarget) -> None:
        self._settings = settings

    def send(self, files: Sequence[Path], stopped: Callable[[], bool]) -> Sent:
        """Send files, one after the other; see `Target`."""
        stored, refused = list[str](), dict[str, Refusal]()
        with requests.Session() as session:
            try:
                client = self._client(session)
                for file in files:
                    if stopped():
                        return Sent(tuple(stored), refused, STOPPED)
                    try:
                        refusal = _store(client, pydicom.dcmread(file))
                    except requests.RequestException as error:
                        if not _never_connected(error):
                            refused[file.name] = Refusal(self._why(error))
                        return Sent(tuple(stored), refused, self._why(error))
                    if refusal is None:
                        stored.append(file.name)
                        continue
                    refused[file.name] = refusal
                    if refusal.is_full:
                        return Sent(tuple(stored), refused, refusal.code)
            except _Unavailable as error:
                return Sent(tuple(stored), refused, str(error))
        return Sent(tuple(stored), refused)

    def echo(self) -> str:
        """Search for a study, or where there is no search ask for the options; see `Target`."""
        with requests.Session() as session:
            try:
                client = self._client(session)
                try:
                    client.search_for_studies(limit=1)
                except requests.HTTPError as error:
                    if _answer(error).status_code not in _NO_SEARCH:
                        raise
                    options = session.options(
                        f"{self._settings.url.rstrip('/')}/studies", timeout=self._timeout_s
                    )
                    options.raise_for_status()
            except _Unavailable as error:
                return str(error)
            except requests.HTTPError as error:
                return _http_words(_answer(error))
            except requests.RequestException as error:
                return self._why(error)
        return ""

    @property
    def _timeout_s(self) -> tuple[float, float]:
        return self._settings.connect_s, self._settings.answer_s

    def _client(self, session: requests.Session) -> DICOMwebClient:
        target = self._settings
        if problems := target.tls.problems():
            raise _Unavailable("; ".join(problems))
        # of the environment only the proxies: REQUESTS_CA_BUNDLE would go before tls_ca
        session.trust_env = False
        session.proxies.update(requests.utils.get_environ_proxies(target.url))
        trusted = ssl.get_default_verify_paths()
        session.verify = str(target.tls_ca or trusted.cafile or trusted.capath or "") or True
        if target.tls_cert is not None and target.tls_key is not None:
            session.cert = (str(target.tls_cert), str(target.tls_key))
        session.auth = _Authorization(target.token_file)
        session.headers["Accept"] = "application/dicom+json"
        session.hooks["response"].append(_refuse_redirect)
        client = DICOMwebClient(
            target.url.rstrip("/"), session=session, timeout=self._timeout_s, chunk_size=2**31
        )
        client.set_http_retry_params(retry=False)  # `edge.dicom_out.deliver` retries
        return client

    def _why(self, error: requests.RequestException) -> str:
        target = self._settings
        match error:
            case requests.exceptions.SSLError():
                return f"{target.url}: TLS fails: {_innermost(error)}"
            case requests.exceptions.ConnectTimeout():
                return f"{target.url} does not answer within {target.connect_s:g} s"
            case requests.exceptions.Timeout():
                return f"{target.url} does not answer within {target.answer_s:g} s"
            case _:
                return f"{target.url}: {_innermost(error)}"


class _Unavailable(Exception):
    """The service, or the way to it, is at fault; the message says why."""


class _Authorization(requests.auth.AuthBase):
    """Puts the token into each request; it is read each time, because tokens are renewed.

    It also leaves the header Host to the library: dicomweb-client writes it without the port.
    """

    def __init__(self, token_file: Path | None) -> None:
        self._file = token_file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Host", None)
        if self._file is not None:
            try:
                token = self._file.read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "not ASCII text"
                raise _Unavailable(f"token_file = {self._file}: {why}") from error
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _refuse_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    """Follow no redirect: a POST would become a GET, which succeeds and stores nothing."""
    if response.is_redirect:
        place = printable_line(response.headers["Location"])
        raise _Unavailable(f"the service redirects to {place}: set url to that")


def _store(client: DICOMwebClient, dataset: pydicom.Dataset) -> Refusal | None:
    """Store one object; return why it is refused, None if it is stored.

    Raises:
        _Unavailable: the service takes nothing now.
        requests.RequestException: it cannot be reached.
    """
    try:
        answer = client.store_instances([dataset])
    except requests.HTTPError as error:
        response = _answer(error)
        if response.status_code in _UNAVAILABLE:
            raise _Unavailable(_http_words(response)) from error
        try:
            answer = pydicom.Dataset.from_json(response.text)
        except Exception:  # whatever it is, it is no answer of STOW-RS
            answer = pydicom.Dataset()
        if not answer.get("FailedSOPSequence"):
            return Refusal(_http_words(response), printable_line(response.text)[:MAX_REASON])
    uid = dataset.SOPInstanceUID
    for item in answer.get("FailedSOPSequence", ()):
        if item.get("ReferencedSOPInstanceUID", uid) == uid:
            code = int(item.get("FailureReason", 0x0110))
            return Refusal(_status_words(code), is_full=_is_full(code))
    # a service may leave out its answer; if there is one, it must have the object
    items = answer.get("ReferencedSOPSequence", ())
    listed = [item.get("ReferencedSOPInstanceUID") for item in items]
    return None if uid in listed or not len(answer) else Refusal("the answer does not list it")


def _contexts(files: Sequence[Path]) -> list[PresentationContext]:
    """Return a presentation context for each SOP class and transfer syntax of the files.

    Uncompressed objects are also offered in the default transfer syntax, which each AE has.
    """
    wanted: dict[tuple[str, str], None] = {}
    for file in files:
        meta = pydicom.filereader.read_file_meta_info(file)
        wanted[meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID] = None
        if not meta.TransferSyntaxUID.is_compressed:
            wanted[meta.MediaStorageSOPClassUID, ImplicitVRLittleEndian] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]


def _is_full(code: int) -> bool:
    """Return whether a failure is that of the whole target: it is out of resources (PS3.4, B.2)."""
    return 0xA700 <= code <= 0xA7FF


def _status_words(code: int) -> str:
    _, words = STORAGE_SERVICE_CLASS_STATUS.get(code, ("", ""))
    return f"{words} (0x{code:04X})" if words else f"status 0x{code:04X}"


def _words(dataset: pydicom.Dataset, keyword: str) -> str:
    return printable_line(str(dataset.get(keyword, "") or ""))[:MAX_REASON]


def _answer(error: requests.HTTPError) -> requests.Response:
    """Return the answer that the error is about; `requests` always sets it here."""
    if error.response is None:
        raise TypeError("an HTTP error without a response")
    return error.response


def _http_words(response: requests.Response) -> str:
    status = f"HTTP {response.status_code} {printable_line(response.reason or '')}".strip()
    hints = {
        HTTPStatus.UNAUTHORIZED: "check token_file, tls_cert and tls_key",
        HTTPStatus.FORBIDDEN: "check token_file, tls_cert and tls_key",
        HTTPStatus.NOT_FOUND: "check url",
        HTTPStatus.METHOD_NOT_ALLOWED: "check url",
    }
    hint = hints.get(HTTPStatus(response.status_code)) if response.status_code in hints else None
    return f"{status}: {hint}" if hint else status


def _never_connected(error: requests.RequestException) -> bool:
    """Return whether a request failed before anything of it was sent."""
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.SSLError):
        return True
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, NewConnectionError):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _innermost(error: BaseException) -> str:
    """Return what the system said, at the end of a chain of errors of several libraries."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable_line(str(error))[:MAX_REASON]
