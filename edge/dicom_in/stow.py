"""Receive studies over HTTP: the Store transaction of DICOMweb (STOW-RS, PS3.18 section 10.5).

POST /dicom-web/studies            instances of any study
POST /dicom-web/studies/{study}    instances of this study

Each part of a request is written to the disk while it arrives, and is durable before the response.
"""

import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from http import HTTPStatus

import structlog
from pydicom.dataset import Dataset
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.dicom_in.identity import Identity, Reason, Refused, checked_uid
from edge.dicom_in.incoming import MAX_INSTANCES, Expected, Incoming, Sender, Source
from edge.dicom_in.received import ReceivedStore, ReceiveMetrics
from edge.settings.receive import ReceiveSettings, plain_address
from process.http import Listener, SlowBody, body_parts, certificate_names, serving
from process.logs import quieten

WAY = "stow"
PART_TYPE = "application/dicom"
RESPONSE_TYPE = "application/dicom+json"
ACCEPTED = frozenset({RESPONSE_TYPE, "application/json", "application/*", "*/*"})
"""Media types of which a client must accept one."""
MAX_REQUESTS = 4
"""Requests that are received at once; further ones get the status 503."""
MAX_CONNECTIONS = 64
"""Connections that may be open at once; more are closed."""
HEADERS_S = 15.0
"""Longest time until the headers of a request are there."""
STOP_S = 10.0
"""Longest time that open requests have at the end."""
MAX_BOUNDARY = 200

log = structlog.get_logger()


@contextmanager
def receiving_by_stow(
    settings: ReceiveSettings, store: ReceivedStore, metrics: ReceiveMetrics
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Receive studies while entered; yield the bound address, and whether it is served.

    Raises:
        CannotListen: the port cannot be bound, or a file of TLS cannot be used.
        BadSettings: the file of the token cannot be used.
    """
    quieten()
    stow, service = settings.stow, _Service(settings, store, metrics)
    at = Listener(
        stow.address,
        "receive.stow.address",
        stow.tls,
        connections=MAX_CONNECTIONS,
        quiet_s=HEADERS_S,
        stop_s=STOP_S,
    )
    with serving(service.app(), at) as bound:
        log.info("receiving by STOW-RS", address=bound.address)
        try:
            yield bound.address, bound.runs
        finally:
            service.stopping = True


Event = str | bytes | None
"""A part begins, with this media type; the next bytes of the part; or its end."""


class RelatedParser:
    """Takes a multipart/related body apart while it arrives (RFC 2387).

    Raises:
        HTTPException: the boundary is invalid.
    """

    def __init__(self, boundary: str) -> None:
        if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Content-Type has no valid boundary")
        self._events: list[Event] = []
        self._name, self._value, self._kind = bytearray(), bytearray(), ""
        self._ended = False
        note = self._events.append
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: note(data[start:end]),
                "on_part_end": lambda: note(None),
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events of the next chunk.

        Raises:
            HTTPException: it is no part of a valid message.
        """
        self._events.clear()
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            text = f"the body is no valid multipart message: {error}"
            raise HTTPException(HTTPStatus.BAD_REQUEST, text) from error
        return self._events

    def finish(self) -> None:
        """Require that the message has ended.

        Raises:
            HTTPException: the closing boundary is missing.
        """
        if not self._ended:
            text = "the body ends before its closing boundary"
            raise HTTPException(HTTPStatus.BAD_REQUEST, text)

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-type":
            self._kind, _ = media_type(self._value.decode("latin-1"))
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        self._events.append(self._kind)
        self._kind = ""

    def _on_end(self) -> None:
        self._ended = True


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
        """Return the module of the response (PS3.18, annex I).

        RetrieveURL is of type 2: it is there, and empty, because nothing is retrieved from here.
        """
        named = [one for one in self.failed if one.instance]
        others = [one for one in self.failed if not one.instance]
        data = Dataset()
        data.RetrieveURL = None
        if self.stored:
            data.ReferencedSOPSequence = [_item(one.sop_class, one.instance) for one in self.stored]
            for item in data.ReferencedSOPSequence:
                item.RetrieveURL = None
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


class _Service:
    """The application: who may send, and what becomes of it.

    ``stopping`` says whether requests are refused because the agent stops.
    """

    def __init__(
        self, settings: ReceiveSettings, store: ReceivedStore, metrics: ReceiveMetrics
    ) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._token = settings.stow.token().encode()
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
            sender, study, parser = self._admit(request)
            self._open += 1
            try:
                outcome = await self._receive(request, sender, study, parser)
            finally:
                self._open -= 1
        except ClientDisconnect:
            log.warning("sender ended its request", way=WAY, peer=_peer(request))
            return Response(status_code=HTTPStatus.BAD_REQUEST, headers=headers)
        except HTTPException as refusal:
            words = HTTPStatus(refusal.status_code).phrase.lower()
            self._metrics.refused_associations.labels(words).inc()
            log.warning("request refused", way=WAY, peer=_peer(request), reason=refusal.detail)
            headers |= refusal.headers or {}
            content = {"error": refusal.detail}
            return JSONResponse(content, refusal.status_code, headers)
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

    def _admit(self, request: Request) -> tuple[Sender, str, RelatedParser]:
        """Return who sends, the study that the path names, and the parser of the body.

        Raises:
            HTTPException: the request is not received.
        """
        caller = self._caller(request)
        try:
            study = request.path_params.get("study", "")
            study = checked_uid(study, "the study in the path") if study else ""
        except Refused as refusal:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(refusal)) from refusal
        kind, parameters = media_type(request.headers.get("content-type", ""))
        part_kind, _ = media_type(parameters.get("type", ""))
        if kind != "multipart/related" or part_kind != PART_TYPE:
            text = f'expected Content-Type: multipart/related; type="{PART_TYPE}"'
            accept = {"Accept": "multipart/related"}
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text, accept)
        accepted = request.headers.get("accept", "*/*").split(",")
        if not {media_type(one)[0] for one in accepted} & ACCEPTED:
            raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, f"the response is {RESPONSE_TYPE}")
        if self.stopping or self._open >= MAX_REQUESTS:
            most = f"{self._open} requests are open, which is the most"
            text = "the agent is being stopped" if self.stopping else most
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "10"})
        parser = RelatedParser(parameters.get("boundary", ""))
        return Sender(Source(WAY, caller, "", _peer(request))), study, parser

    def _caller(self, request: Request) -> str:
        """Return the name of the caller.

        Raises:
            HTTPException: it has no token, or a wrong one.
        """
        if self._token:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "bearer" or not same:
                bearer = {"WWW-Authenticate": "Bearer"}
                raise HTTPException(HTTPStatus.UNAUTHORIZED, "token missing or wrong", bearer)
        elif self._settings.stow.tls.ca is None and not _is_local(request):
            text = "without a token only this machine may send"
            raise HTTPException(HTTPStatus.FORBIDDEN, text)
        return next(iter(certificate_names(request) or ()), "token" if self._token else "")

    async def _receive(
        self, request: Request, sender: Sender, study: str, parser: RelatedParser
    ) -> _Outcome:
        outcome, part, parts, complete = _Outcome(), None, 0, False
        try:
            async for chunk in body_parts(request, idle_s=self._settings.timeout_s):
                for event in parser.feed(chunk):
                    match event:
                        case str(kind):
                            parts += 1
                            if parts > MAX_INSTANCES:
                                text = f"more than {MAX_INSTANCES} instances in one request"
                                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
                            if kind == PART_TYPE:
                                part = await run_in_threadpool(self._store.begin)
                            else:
                                outcome.other_types += 1
                                who = {"way": WAY, "peer": sender.source.peer}
                                log.warning("part refused", **who, reason="media type")
                        case bytes(data) if part is not None:
                            part.write(data)
                        case None if part is not None:
                            await run_in_threadpool(self._keep, part, study, outcome, sender)
                            part = None
            parser.finish()
            complete = self._settings.complete_at_end and outcome.status is HTTPStatus.OK
        except SlowBody as error:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, str(error)) from error
        finally:
            if part is not None:
                part.discard()
            await run_in_threadpool(partial(self._store.released, sender, complete=complete))
        return outcome

    def _keep(self, part: Incoming, study: str, outcome: _Outcome, sender: Sender) -> None:
        """Make the instance durable, and note what became of it."""
        try:
            outcome.stored.append(self._store.keep(part, Expected(study=study), sender))
        except Refused as refusal:
            outcome.failed.append(refusal)


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Return type and parameters of a Content-Type, in lower case except for values."""
    message = Message()
    message["Content-Type"] = value
    parameters = message.get_params(failobj=[], unquote=True)[1:]
    return message.get_content_type(), {name.lower(): text for name, text in parameters}


def _peer(request: Request) -> str:
    return "" if request.client is None else request.client.host


def _is_local(request: Request) -> bool:
    return request.client is not None and plain_address(request.client.host).is_loopback
