"""Receive studies over HTTP: the Store transaction of DICOMweb (STOW-RS, PS3.18 section 10.5).

POST /dicom-web/studies            instances of any study
POST /dicom-web/studies/{study}    instances of this study

Each part of a request is written to the disk while it arrives, and is durable before the response.
"""

import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import structlog
from pydicom.dataset import Dataset
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.dicom_in.identity import Identity, checked_uid
from edge.dicom_in.incoming import MAX_INSTANCES, Expected, Incoming, Source
from edge.dicom_in.multipart import (
    MalformedRequest,
    PartBegins,
    PartData,
    PartEnds,
    RelatedParser,
    media_type,
)
from edge.dicom_in.port import Counters, Listening, keep
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.refusals import Reason, Refused
from edge.errors import BadSettings
from edge.settings.core import EdgeSettings
from edge.settings.receive import plain_address
from process.http import Listener, SlowBody, body_parts, certificate_names, serving
from process.logs import quieten

WAY = "stow"
PART_TYPE = "application/dicom"
RESPONSE_TYPE = "application/dicom+json"
MAX_REQUESTS = 4
"""Requests that are received at once; further ones get the status 503."""
MAX_CONNECTIONS = 64
"""Connections that may be open at once; more are closed."""
HEADERS_S = 15.0
"""Longest time until the headers of a request are there."""
STOP_S = 10.0
"""Longest time that open requests have at the end."""
MAX_TOKEN_BYTES = 4096

log = structlog.get_logger()


@contextmanager
def receiving_by_stow(
    settings: EdgeSettings,
    store: ReceivedStore,
    counters: Counters,
    *,
    max_open: int = MAX_REQUESTS,
) -> Iterator[Listening | None]:
    """Receive studies while entered; yield the bound address, None if it is off.

    Raises:
        CannotListen: the port cannot be bound, or a file of TLS cannot be used.
        BadSettings: the file of the token cannot be used.
    """
    if not settings.receive.stow.address:
        yield None
        return
    quieten()
    stow, service = settings.receive.stow, _Service(settings, store, counters, max_open)
    at = Listener(
        stow.address,
        "receive.stow.address",
        stow.tls,
        connections=MAX_CONNECTIONS,
        quiet_s=HEADERS_S,
        stop_s=STOP_S,
    )
    with serving(service.app(), at) as bound:
        try:
            yield Listening(bound.address, bound.runs)
        finally:
            service.stopping = True


def read_token(settings: EdgeSettings) -> bytes:
    """Return the token that senders must name; empty for none.

    Raises:
        BadSettings: the file cannot be read, or is empty.
    """
    path = settings.receive.stow.token_file
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise BadSettings(f"receive.stow.token_file = {path}: {error.strerror}") from error
    if len(token) < 16 or not token.isascii() or any(c <= 32 for c in token):
        raise BadSettings(
            f"receive.stow.token_file = {path}: expected one line of at least 16 ASCII characters"
            " without spaces"
        )
    return token


@dataclass
class _Outcome:
    """What became of the parts of one request."""

    stored: list[Identity] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)
    other_types: int = 0

    @property
    def status(self) -> HTTPStatus:
        """The status of the response (PS3.18, table 10.5.3-1)."""
        if self.stored:
            return HTTPStatus.ACCEPTED if self.failed or self.other_types else HTTPStatus.OK
        reasons = {one.reason for one in self.failed}
        if not reasons:
            is_empty = not self.other_types
            return HTTPStatus.BAD_REQUEST if is_empty else HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        if reasons <= {Reason.NO_ROOM, Reason.STOPPING, Reason.FAULT}:
            return HTTPStatus.SERVICE_UNAVAILABLE
        if reasons <= {Reason.TOO_LARGE, Reason.TOO_MANY}:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return HTTPStatus.CONFLICT

    def data_set(self) -> Dataset:
        """Return the module of the response (PS3.18, table 10.5.3-2)."""
        named = [one for one in self.failed if one.instance]
        others = [one for one in self.failed if not one.instance]
        data = Dataset()
        if self.stored:
            data.ReferencedSOPSequence = [_item(one.sop_class, one.instance) for one in self.stored]
        if named:
            data.FailedSOPSequence = [
                _item(one.sop_class, one.instance, one.reason) for one in named
            ]
        if others:
            data.OtherFailuresSequence = [_item("", "", one.reason) for one in others]
        return data


def _item(sop_class: str, instance: str, reason: Reason | None = None) -> Dataset:
    item = Dataset()
    if instance:
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    if reason is not None:
        item.FailureReason = reason.status
    return item


class _Refusal(Exception):
    """A whole request is refused, with headers of the response."""

    def __init__(self, status: HTTPStatus, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


class _Service:
    """The application: who may send, and what becomes of it.

    ``stopping`` says whether requests are refused because the agent stops.
    """

    def __init__(
        self, settings: EdgeSettings, store: ReceivedStore, counters: Counters, max_open: int
    ) -> None:
        self._settings, self._store, self._counters = settings, store, counters
        self._max_open = max_open
        self._token = read_token(settings)
        self._open = 0
        self.stopping = False

    def app(self) -> Starlette:
        """Return the application."""
        paths = ("/dicom-web/studies", "/dicom-web/studies/{study}")
        return Starlette(routes=[Route(path, self._answer, methods=["POST"]) for path in paths])

    async def _answer(self, request: Request) -> Response:
        # a connection has one request: what is left of a refused body is not read
        headers = {"Connection": "close", "Cache-Control": "no-store"}
        try:
            source, study, parser = self._admit(request)
            self._open += 1
            try:
                outcome = await self._receive(request, source, study, parser)
            finally:
                self._open -= 1
        except ClientDisconnect:
            log.warning("sender ended its request", way=WAY, peer=_peer(request))
            return Response(status_code=HTTPStatus.BAD_REQUEST, headers=headers)
        except _Refusal as refusal:
            words = refusal.status.phrase.lower()
            self._counters.count_refused_association(words)
            log.warning("request refused", way=WAY, peer=_peer(request), reason=str(refusal))
            content = {"error": str(refusal)}
            headers |= refusal.headers
            return JSONResponse(content, status_code=refusal.status, headers=headers)
        except Exception as error:  # whatever it is, the next request must be answered
            log.error("request failed", way=WAY, error=type(error).__name__, exc_info=True)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return Response(status_code=status, headers=headers)
        return Response(
            json.dumps(outcome.data_set().to_json_dict()),
            status_code=outcome.status,
            media_type=RESPONSE_TYPE,
            headers=headers,
        )

    def _admit(self, request: Request) -> tuple[Source, str, RelatedParser]:
        """Return who sends, the study that the path names, and the parser of the body.

        Raises:
            _Refusal: the request is not received.
        """
        caller = self._caller(request)
        try:
            study = request.path_params.get("study", "")
            study = checked_uid(study, "the study in the path") if study else ""
        except Refused as refusal:
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(refusal)) from refusal
        kind, parameters = media_type(request.headers.get("content-type", ""))
        part_kind, _ = media_type(parameters.get("type", ""))
        if kind != "multipart/related" or part_kind != PART_TYPE:
            text = f'expected Content-Type: multipart/related; type="{PART_TYPE}"'
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text, Accept="multipart/related")
        if not _accepts(request.headers.get("accept", "*/*")):
            raise _Refusal(HTTPStatus.NOT_ACCEPTABLE, f"the response is {RESPONSE_TYPE}")
        retry = {"Retry-After": "10"}
        if self.stopping:
            text = "the agent is being stopped"
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, **retry)
        if self._open >= self._max_open:
            text = f"{self._open} requests are open, which is the most"
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, **retry)
        try:
            parser = RelatedParser(parameters.get("boundary", ""))
        except MalformedRequest as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        return Source(WAY, caller, "", _peer(request)), study, parser

    def _caller(self, request: Request) -> str:
        """Return the name of the caller.

        Raises:
            _Refusal: it has no token, or a wrong one.
        """
        if self._token:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "bearer" or not same:
                authenticate = {"WWW-Authenticate": "Bearer"}
                raise _Refusal(HTTPStatus.UNAUTHORIZED, "token missing or wrong", **authenticate)
        elif self._settings.receive.stow.tls.ca is None and not _is_local(request):
            raise _Refusal(HTTPStatus.FORBIDDEN, "without a token only this machine may send")
        return next(iter(certificate_names(request) or ()), "token" if self._token else "")

    async def _receive(
        self, request: Request, source: Source, study: str, parser: RelatedParser
    ) -> _Outcome:
        outcome, part = _Outcome(), None
        parts, sender, complete = 0, self._store.new_sender(), False
        try:
            async for chunk in body_parts(request, idle_s=self._settings.receive.timeout_s):
                for event in parser.feed(chunk):
                    match event:
                        case PartBegins(kind):
                            parts += 1
                            self._require_few(parts)
                            if kind == PART_TYPE:
                                part = await run_in_threadpool(self._store.begin)
                            else:
                                outcome.other_types += 1
                                who = {"way": WAY, "peer": source.peer}
                                log.warning("part refused", **who, reason="media type")
                        case PartData(data) if part is not None:
                            part.write(data)
                        case PartEnds() if part is not None:
                            await run_in_threadpool(
                                self._keep, part, source, study, outcome, sender
                            )
                            part = None
            parser.finish()
            complete = self._settings.receive.complete_at_end and outcome.status is HTTPStatus.OK
        except MalformedRequest as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        except SlowBody as error:
            raise _Refusal(HTTPStatus.REQUEST_TIMEOUT, str(error)) from error
        finally:
            if part is not None:
                part.discard()
            await run_in_threadpool(partial(self._store.released, sender, complete=complete))
        return outcome

    def _require_few(self, parts: int) -> None:
        if parts > MAX_INSTANCES:
            text = f"more than {MAX_INSTANCES} instances in one request"
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)

    def _keep(
        self, part: Incoming, source: Source, study: str, outcome: _Outcome, sender: int
    ) -> None:
        """Make the instance durable, and note what became of it."""
        try:
            expected = Expected(study=study)
            identity = keep(self._store, self._counters, part, source, expected, sender)
        except Refused as refusal:
            outcome.failed.append(refusal)
        else:
            outcome.stored.append(identity)


def _accepts(header: str) -> bool:
    kinds = {media_type(one)[0] for one in header.split(",")}
    return bool(kinds & {RESPONSE_TYPE, "application/json", "application/*", "*/*"})


def _peer(request: Request) -> str:
    return "" if request.client is None else request.client.host


def _is_local(request: Request) -> bool:
    return request.client is not None and plain_address(request.client.host).is_loopback
