"""The Open Inference Protocol over HTTP: JSON, and Triton's extension for binary tensors.

GET  /v2/health/live, /v2/health/ready, /v2
GET  /v2/models/{model}[/versions/{version}]   and below it /ready, /config, /stats
GET  /v2/models/stats
POST /v2/models/{model}[/versions/{version}]/infer
POST /v2/repository/index

A request's body is JSON; with the header ``Inference-Header-Content-Length`` it is JSON of that
length, and then the raw content of the input. Errors are ``{"error": …}``.
"""

import asyncio
import math
import zlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import grpc
import structlog
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloud.callers import INTERNAL, Caller, named_caller
from cloud.inference_protocol.http_json import (
    HEADER_LENGTH,
    as_json,
    decode_request,
    encode_response,
)
from cloud.inference_protocol.inference import Inference
from cloud.limits import Bounds
from cloud.settings import CloudSettings
from process.http import LargeBody, SlowBody, body_parts, certificate_names
from protos import inference_pb2 as pb
from protos.errors import (
    DeadlineUnmeetable,
    InvalidRequest,
    OverreadError,
    ServiceFault,
    TooLarge,
    to_status,
)
from protos.metadata import SITE_KEY

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
"""HTTP status of a gRPC status; others are INTERNAL_SERVER_ERROR."""

# The window bits of zlib for each encoding of a body: a header of gzip, or of zlib.
_ENCODINGS = {"gzip": 31, "deflate": 15}

DISCARDED_BYTES = 2**24
"""Bytes of a refused body that are still received: its sender would not read the answer before."""

_log = structlog.get_logger(__name__)

Answer = Callable[[Request], Response]


class RestService:
    """The application; ``max_body`` is the largest body in bytes, unpacked too."""

    def __init__(
        self, inference: Inference, settings: CloudSettings, bounds: Bounds, max_body: int
    ) -> None:
        self._inference, self._settings = inference, settings
        self._bounds, self._max_body = bounds, max_body

    def app(self) -> Starlette:
        """Return the application."""
        one = self._inference
        get: dict[str, Answer] = {
            "": lambda _: _json(one.server_metadata()),
            "/health/live": lambda _: _state(True),
            "/health/ready": lambda _: _state(one.ready),
            "/models/stats": lambda request: _json(one.statistics(*_model(request))),
        }
        of_model: dict[str, Answer] = {
            "": lambda request: _json(one.metadata(*_model(request))),
            "/ready": lambda request: _state(one.serves(*_model(request))),
            "/config": lambda request: _json(one.config(*_model(request))),
            "/stats": lambda request: _json(one.statistics(*_model(request))),
        }
        models = ("/models/{model}", "/models/{model}/versions/{version}")
        get |= {f"{path}{rest}": answer for path in models for rest, answer in of_model.items()}
        routes = [Route(f"/v2{path}", _checked(answer)) for path, answer in get.items()]
        routes += [Route(f"/v2{path}/infer", self._infer, methods=["POST"]) for path in models]
        # what the body may ask for makes no difference: there is one model
        index = _checked(lambda _: JSONResponse(as_json(one.index(only_ready=False))["models"]))
        return Starlette(
            routes=[*routes, Route("/v2/repository/index", index, methods=["POST"])],
            middleware=[Middleware(GZipMiddleware, compresslevel=1)],
            exception_handlers={HTTPException: _unrouted},
        )

    async def _infer(self, request: Request) -> Response:
        caller = self._caller(request)
        who = {"site": caller.site, "peer": _host(request)}
        try:
            with self._inference.admitted(caller):  # before its body is received
                return await self._answer(request, caller)
        except ClientDisconnect:
            _log.info("inference request cancelled", **who)
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except OverreadError as error:
            _log.info("inference request failed", error=error.kind, reason=error.reason, **who)
            response = _failure(error)
            if not await self._discard(request):
                response.headers["Connection"] = "close"
            return response
        except Exception:  # whatever it is, the next request must be answered
            _log.exception("internal error", **who)
            return _failure(ServiceFault(INTERNAL))

    async def _answer(self, request: Request, caller: Caller) -> Response:
        self._inference.check_model(*_model(request))
        body = await self._body(request)
        length = request.headers.get(HEADER_LENGTH)
        # in a thread: a body of JSON alone takes long
        message, binary = await run_in_threadpool(decode_request, body, length)
        message.model_name, message.model_version = _model(request)
        response = await self._unless_gone(request, self._inference.infer(message, caller))
        content, headers = await run_in_threadpool(encode_response, response, binary)
        return Response(content, headers=headers)

    async def _body(self, request: Request) -> bytes:
        """Return the body, unpacked."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *_ENCODINGS):
            raise InvalidRequest(f"Content-Encoding {encoding!r:.50}, expected gzip or deflate")
        idle_s, most_s = self._bounds.idle_timeout_s, self._bounds.max_budget_s
        parts = body_parts(request, idle_s=idle_s, within_s=most_s, most=self._max_body)
        try:
            body = b"".join([part async for part in parts])
        except SlowBody as error:
            raise InvalidRequest(str(error)) from None
        except LargeBody:
            raise self._too_large() from None
        if encoding == "identity":
            return body
        return await run_in_threadpool(self._unpacked, body, encoding)

    async def _discard(self, request: Request) -> bool:
        """Receive the rest of a body; return whether it came to its end."""
        idle_s = self._bounds.idle_timeout_s
        try:
            rest = body_parts(request, idle_s=idle_s, within_s=idle_s, most=DISCARDED_BYTES)
            async for _ in rest:
                pass
        except RuntimeError:  # starlette's: all of it was received before
            return True
        except (SlowBody, LargeBody, ClientDisconnect):
            return False
        return True

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        unpacker = zlib.decompressobj(_ENCODINGS[encoding])
        try:
            plain = unpacker.decompress(body, self._max_body + 1)
        except zlib.error as error:
            raise InvalidRequest(f"the body is not {encoding}: {error}") from None
        if len(plain) > self._max_body:
            raise self._too_large()
        if not unpacker.eof:
            raise InvalidRequest(f"the body of {encoding} is not complete")
        return plain

    def _too_large(self) -> TooLarge:
        most = self._settings.max_batch
        return TooLarge(f"a body of more than {self._max_body} bytes; max_batch is {most} ROIs")

    async def _unless_gone(
        self, request: Request, answering: Awaitable[pb.ModelInferResponse]
    ) -> pb.ModelInferResponse:
        """Return the answer; cancel it when the caller goes away.

        Raises:
            ClientDisconnect: the caller went away.
        """
        answer = asyncio.ensure_future(answering)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()

    def _caller(self, request: Request) -> Caller:
        names = certificate_names(request)
        return named_caller(
            names or (),
            request.headers.getlist(SITE_KEY),
            _host(request),
            certified=names is not None,
            settings=self._settings,
        )


def _host(request: Request) -> str:
    """Return the caller's address as gRPC writes it: a machine is one site over both."""
    host = "" if request.client is None else request.client.host
    return f"[{host}]" if ":" in host else host


def _failure(error: OverreadError) -> Response:
    """Return an error as a response; headers name its class, and when to try again."""
    code, reason, _ = to_status(error)
    status = _STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    if isinstance(error, DeadlineUnmeetable):  # refused at once, where another would be in time
        status = HTTPStatus.TOO_MANY_REQUESTS
    headers = {"overread-error": error.kind}
    if error.retry_s is not None and math.isfinite(error.retry_s):
        headers["retry-after"] = str(math.ceil(error.retry_s))
    return JSONResponse({"error": reason}, status, headers)


def _checked(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that answers its errors as the protocol does."""

    async def handle(request: Request) -> Response:
        try:
            return answer(request)
        except OverreadError as error:
            return _failure(error)

    return handle


def _model(request: Request) -> tuple[str, str]:
    """Return the name and the version of the model that the path names."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _json(message: Message) -> Response:
    return JSONResponse(as_json(message))


def _state(is_so: bool) -> Response:
    """Return 200 for true and 400 for false, as the protocol has it."""
    return Response(status_code=HTTPStatus.OK if is_so else HTTPStatus.BAD_REQUEST)


async def _unrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
