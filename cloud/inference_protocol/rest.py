"""The Open Inference Protocol over HTTP: JSON, and Triton's extension for binary tensors.

GET  /v2/health/live, /v2/health/ready, /v2
GET  /v2/models/{model}[/versions/{version}]   and below it /ready, /config, /stats
GET  /v2/models/stats
POST /v2/models/{model}[/versions/{version}]/infer
POST /v2/repository/index

A request's body is JSON; with the header ``Inference-Header-Content-Length`` it is JSON of that
length, and then the raw content of the input. Errors are ``{"error": …}``. Nothing of a body is
trusted: sizes and types are checked before memory is taken for them.
"""

import asyncio
import itertools
import json
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import grpc
import structlog
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloud.callers import Caller, named_caller
from cloud.inference_protocol.inference import Inference
from cloud.inference_protocol.tensors import check_datatype, decode_output
from process.http import LargeBody, SlowBody, body_parts, certificate_names
from protos import inference_pb2 as pb
from protos.errors import DeadlineUnmeetable, InvalidRequest, OverreadError, TooLarge, to_status
from protos.messages import SITE_KEY

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE = "binary_data_size"
MAX_DIMENSIONS = 8
"""Levels of lists in a tensor's ``data``, and numbers in its shape."""

MAX_TENSORS = 16
"""Inputs, and outputs, of a request."""

Binary = Mapping[str, bool]
"""Whether each requested output is sent raw; the default for others is under the empty name."""

_Side = Annotated[int, Field(ge=0, lt=2**31)]
_Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Parameters = dict[str, bool | _Integer | float | str]

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
"""HTTP status of a gRPC status; others are INTERNAL_SERVER_ERROR."""

# The window bits of zlib for each encoding of a body: a header of gzip, or of zlib.
_ENCODINGS = {"gzip": 31, "deflate": 15}

DISCARDED_BYTES = 2**24
"""Bytes of a refused body that are still received: its sender would not read the answer before."""

Answer = Callable[[str, str], Any]
"""Answers a call about the model of a name and a version: yes or no, a message, or JSON."""

_log = structlog.get_logger(__name__)


class RestService:
    """The application; ``max_body`` is the largest body in bytes, unpacked too."""

    def __init__(self, inference: Inference, max_body: int) -> None:
        self._inference, self._max_body = inference, max_body
        self._settings, self._bounds = inference.settings, inference.bounds

    def app(self) -> Starlette:
        """Return the application."""
        one = self._inference
        get: dict[str, Answer] = {
            "": lambda *_: one.server_metadata(),
            "/health/live": lambda *_: True,
            "/health/ready": lambda *_: one.ready,
            "/models/stats": one.statistics,
        }
        models = ("/models/{model}", "/models/{model}/versions/{version}")
        for path in models:
            get |= {path: one.metadata, f"{path}/ready": one.serves}
            get |= {f"{path}/config": one.config, f"{path}/stats": one.statistics}
        routes = [Route(f"/v2{path}", _answering(answer)) for path, answer in get.items()]
        routes += [Route(f"/v2{path}/infer", self._infer, methods=["POST"]) for path in models]
        # what the body may ask for makes no difference: there is one model
        index = _answering(lambda *_: as_json(one.index(only_ready=False))["models"])
        return Starlette(
            routes=[*routes, Route("/v2/repository/index", index, methods=["POST"])],
            middleware=[Middleware(GZipMiddleware, compresslevel=1)],
            exception_handlers={HTTPException: _unrouted, OverreadError: _failed},
        )

    async def _infer(self, request: Request) -> Response:
        names, peer = certificate_names(request), _host(request)
        said = request.headers.getlist(SITE_KEY)
        caller = named_caller(names, said, peer, self._settings)
        try:
            with self._inference.admitted(caller, peer):  # before its body is received
                try:
                    return await self._answer(request, caller)
                except ClientDisconnect:
                    _log.info("inference request cancelled", site=caller.site, peer=peer)
                    return Response(status_code=HTTPStatus.BAD_REQUEST)
        except OverreadError as error:
            if (more := self._inference.refusals.more("inference", error.kind)) is not None:
                why = {"error": error.kind, "reason": error.reason, "site": caller.site}
                _log.info("inference request failed", **why, peer=peer, **more)
            response = await _failed(request, error)
            if not await self._discard(request):
                response.headers["Connection"] = "close"
            return response

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
        return TooLarge(
            f"the body is larger than {self._max_body} bytes: send at most {most} ROIs (max_batch)"
            " as binary data, or one as JSON"
        )

    async def _unless_gone(
        self, request: Request, answering: Awaitable[pb.ModelInferResponse]
    ) -> pb.ModelInferResponse:
        """Return the answer; cancel it, and raise `ClientDisconnect`, when the caller goes away."""
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


def _host(request: Request) -> str:
    """Return the caller's address as gRPC writes it: a machine is one site over both."""
    host = "" if request.client is None else request.client.host
    return f"[{host}]" if ":" in host else host


async def _failed(_request: Request, error: Exception) -> Response:
    """Return an error as a response; headers name its class, and when to try again."""
    assert isinstance(error, OverreadError)
    code, reason, _ = to_status(error)
    status = _STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    if isinstance(error, DeadlineUnmeetable):  # refused at once, where another would be in time
        status = HTTPStatus.TOO_MANY_REQUESTS
    headers = {"overread-error": error.kind}
    if error.retry_s is not None and math.isfinite(error.retry_s):
        headers["retry-after"] = str(math.ceil(error.retry_s))
    return JSONResponse({"error": reason}, status, headers)


def _answering(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of a call that is answered at once: yes or no, a message, or JSON."""

    async def handle(request: Request) -> Response:
        said = answer(*_model(request))
        if isinstance(said, bool):
            return Response(status_code=HTTPStatus.OK if said else HTTPStatus.BAD_REQUEST)
        return JSONResponse(as_json(said) if isinstance(said, Message) else said)

    return handle


def _model(request: Request) -> tuple[str, str]:
    """Return the name and the version of the model that the path names."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")


async def _unrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Output(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: _Parameters = {}


class _Input(_Output):
    """An input; its values are in ``data``, or behind the JSON."""

    datatype: str
    shape: list[_Side] = Field(max_length=MAX_DIMENSIONS)
    data: list[Any] | None = None


class _Request(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(strict=True)

    id: str = ""
    parameters: _Parameters = {}
    inputs: list[_Input] = Field([], max_length=MAX_TENSORS)
    outputs: list[_Output] = Field([], max_length=MAX_TENSORS)


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON of the protocol: names as in the proto file, integers as numbers."""
    return {
        field.name: _value_as_json(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value_as_json(field: Any, value: Any) -> Any:
    def one(item: Any) -> Any:
        if field.enum_type is not None:
            return field.enum_type.values_by_number[item].name
        return as_json(item) if field.message_type is not None else item

    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: as_json(item) for key, item in value.items()}  # its values are messages
    return [one(item) for item in value] if field.is_repeated else one(value)


def decode_request(body: bytes, header_length: str | None) -> tuple[pb.ModelInferRequest, Binary]:
    """Return the request in a body, without its model, and which outputs are wanted raw.

    ``header_length`` is the value of `HEADER_LENGTH`, None where it is not given: then all of the
    body is JSON.

    Raises:
        InvalidRequest: the body is not a request.
    """
    size = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
        if not is_number or (size := int(header_length)) > len(body):
            said = f"{HEADER_LENGTH}: {header_length!r:.50}"
            raise InvalidRequest(f"{said}, expected a number of at most {len(body)}")
    try:
        given = _Request.model_validate_json(body[:size])
    except ValidationError as error:
        raise InvalidRequest(_sentence(error)) from None
    request, rest = pb.ModelInferRequest(id=given.id), memoryview(body)[size:]
    _put_parameters(request.parameters, given.parameters)
    for item in given.inputs:
        check_datatype(item.name, item.datatype)
        tensor = request.inputs.add(name=item.name, datatype=item.datatype, shape=item.shape)
        _put_parameters(tensor.parameters, item.parameters)
        content, rest = _content(item, rest)
        request.raw_input_contents.append(content)
    if rest:
        raise InvalidRequest(f"{len(rest)} bytes after the JSON belong to no input")
    binary = {"": given.parameters.get("binary_data_output") is True}
    for wanted in given.outputs:
        output = request.outputs.add(name=wanted.name)
        _put_parameters(output.parameters, wanted.parameters)
        if "binary_data" in wanted.parameters:
            binary[output.name] = wanted.parameters["binary_data"] is True
    return request, binary


def encode_response(
    response: pb.ModelInferResponse, binary: Binary
) -> tuple[bytes, dict[str, str]]:
    """Return the body of a response, and its headers."""
    outputs, raws = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        said = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if binary.get(output.name, binary[""]):
            raws.append(raw)
            outputs.append({**said, "parameters": {BINARY_SIZE: len(raw)}})
        else:
            outputs.append({**said, "data": decode_output(output.datatype, raw)})
    fields = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        fields["id"] = response.id
    text = json.dumps({**fields, "outputs": outputs}, separators=(",", ":")).encode()
    if not raws:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join((text, *raws)), headers


def _sentence(error: ValidationError) -> str:
    """Say which part of the JSON is wrong, and how."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the request"
    return f"{where}: {first['input']!r:.50}: {first['msg']!s:.150}"


def _content(given: _Input, rest: memoryview) -> tuple[bytes, memoryview]:
    """Return the values of an input, and what it leaves of the bytes behind the JSON."""
    size = given.parameters.get(BINARY_SIZE)
    if size is None:
        return _bytes_of(given.data), rest
    if given.data is not None or type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequest(
            f"{BINARY_SIZE} {size!r:.50} of {given.name!r:.50}, expected its bytes after the"
            f" JSON: {len(rest)} are there"
        )
    return bytes(rest[:size]), rest[size:]


def _bytes_of(data: Sequence[Any] | None) -> bytes:
    """Return the values of an input, a list of lists or flat, as bytes."""
    for _ in range(MAX_DIMENSIONS):
        if not (data and isinstance(data[0], list)):
            break
        if not all(isinstance(one, list) for one in data):
            raise InvalidRequest("data is a list of lists and of others")
        data = list(itertools.chain.from_iterable(data))
    if data is None:
        raise InvalidRequest(f"an input has neither data nor {BINARY_SIZE}")
    if wrong := [one for one in data if type(one) is not int or not 0 <= one < 256]:
        raise InvalidRequest(f"data has {wrong[0]!r:.50}, expected whole numbers from 0 to 255")
    return bytes(data)


def _put_parameters(into: Any, parameters: _Parameters) -> None:
    """Add parameters to a message."""
    for name, value in parameters.items():
        setattr(into[name], _FIELDS[type(value)], value)


_FIELDS = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
