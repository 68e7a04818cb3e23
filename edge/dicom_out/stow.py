"""Send DICOM files to a DICOMweb service by STOW-RS (PS3.18)."""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from urllib3.exceptions import NewConnectionError

from edge.dicom_out.targets import MAX_REASON, Refusal, Store, Target, Unreachable
from edge.errors import BadSettings
from edge.settings.receive import read_token
from edge.settings.targets import DicomWebTarget
from process.text import printable_line

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


class DicomWebService(Target):
    """A DICOMweb service that stores what it gets by STOW-RS, one object a request.

    With one object a request, a refusal is always that of one object.
    """

    def __init__(self, settings: DicomWebTarget) -> None:
        self._settings = settings

    @contextmanager
    def _opened(self, _files: Sequence[Path]) -> Iterator[Store]:
        with requests.Session() as session:
            client = self._client(session)

            def store(file: Path | pydicom.Dataset) -> Refusal | None:
                try:
                    return _store(client, pydicom.dcmread(file) if isinstance(file, Path) else file)
                except requests.RequestException as error:
                    if _never_connected(error):
                        raise Unreachable(self._why(error)) from error
                    return Refusal(self._why(error), is_last=True)

            yield store

    def _has(self, files: Mapping[str, tuple[str, str, str]]) -> set[str]:
        """Ask by QIDO-RS for each instance; see `Target`."""
        found = set[str]()
        # a service without search, or that cannot be reached now, does not say
        with (
            suppress(Unreachable, requests.RequestException, ValueError),
            requests.Session() as one,
        ):
            for name, (study, series, uid) in files.items():
                answers = self._client(one).search_for_instances(
                    study, series, search_filters={"SOPInstanceUID": uid}
                )
                if any(uid in item.get("00080018", {}).get("Value", ()) for item in answers):
                    found.add(name)
        return found

    def echo(self) -> str:
        """Search for a study, or where there is no search ask for the options; see `Target`."""
        try:
            with requests.Session() as session:
                try:
                    self._client(session).search_for_studies(limit=1)
                except requests.HTTPError as error:
                    if _answer(error).status_code not in _NO_SEARCH:
                        raise
                    url = f"{self._settings.url.rstrip('/')}/studies"
                    session.options(url, timeout=self._timeout_s).raise_for_status()
        except Unreachable as error:
            return str(error)
        except requests.HTTPError as error:
            return _http_words(_answer(error))
        except requests.RequestException as error:
            return self._why(error)
        return ""

    @property
    def _timeout_s(self) -> tuple[float, float]:
        return self._settings.connect_s, self._settings.timeout_s

    def _client(self, session: requests.Session) -> DICOMwebClient:
        target = self._settings
        if problems := target.tls.problems():
            raise Unreachable("; ".join(problems))
        # of the environment only the proxies: REQUESTS_CA_BUNDLE would go before tls.ca
        session.trust_env = False
        session.proxies.update(requests.utils.get_environ_proxies(target.url))
        trusted = ssl.get_default_verify_paths()
        session.verify = str(target.tls.ca or trusted.cafile or trusted.capath or "") or True
        if target.tls.cert is not None and target.tls.key is not None:
            session.cert = (str(target.tls.cert), str(target.tls.key))
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
                return f"{target.url} does not answer within {target.timeout_s:g} s"
            case _:
                return f"{target.url}: {_innermost(error)}"


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
                token = read_token("token_file", self._file)
            except BadSettings as error:
                raise Unreachable(str(error)) from error
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _refuse_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    """Follow no redirect: a POST would become a GET, which succeeds and stores nothing."""
    if response.is_redirect:
        place = printable_line(response.headers["Location"])
        raise Unreachable(f"the service redirects to {place}: set url to that")


def _store(client: DICOMwebClient, dataset: pydicom.Dataset) -> Refusal | None:
    """Store one object; return why it is refused, None if it is stored.

    Raises:
        Unreachable: the service takes nothing now.
        requests.RequestException: it cannot be reached.
    """
    try:
        answer = client.store_instances([dataset])
    except requests.HTTPError as error:
        response = _answer(error)
        if response.status_code in _UNAVAILABLE:
            raise Unreachable(_http_words(response)) from error
        try:
            answer = pydicom.Dataset.from_json(response.text)
        except Exception:  # whatever it is, it is no answer of STOW-RS
            answer = pydicom.Dataset()
        if not answer.get("FailedSOPSequence"):
            return Refusal(_http_words(response), printable_line(response.text)[:MAX_REASON])
    uid = dataset.SOPInstanceUID
    for item in answer.get("FailedSOPSequence", ()):
        if item.get("ReferencedSOPInstanceUID", uid) == uid:
            return Refusal.of(int(item.get("FailureReason", 0x0110)))
    # a service may leave out its answer; if there is one, it must have the object
    items = answer.get("ReferencedSOPSequence", ())
    listed = [item.get("ReferencedSOPInstanceUID") for item in items]
    return None if uid in listed or not len(answer) else Refusal("the answer does not list it")


def _answer(error: requests.HTTPError) -> requests.Response:
    """Return the answer that the error is about; `requests` always sets it here."""
    if error.response is None:
        raise TypeError("an HTTP error without a response")
    return error.response


def _http_words(response: requests.Response) -> str:
    status = f"HTTP {response.status_code} {printable_line(response.reason or '')}".strip()
    match response.status_code:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return f"{status}: check token_file, tls.cert and tls.key"
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            return f"{status}: check url"
        case _:
            return status


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
