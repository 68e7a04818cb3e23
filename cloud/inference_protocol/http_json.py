"""The protocol's messages as bodies of HTTP: JSON, with raw tensors behind it where wanted.

Nothing of a body is trusted: sizes and types are checked before memory is taken for them.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloud.inference_protocol.tensors import decode_output
from protos import inference_pb2 as pb
from protos.errors import InvalidRequest

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
    for one in given.inputs:
        tensor = request.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        _put_parameters(tensor.parameters, one.parameters)
        content, rest = _content(one, rest)
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
    if data is None or not all(type(one) is int and 0 <= one < 256 for one in data):
        raise InvalidRequest("data is no list of numbers from 0 to 255, as UINT8 has them")
    return bytes(data)


def _put_parameters(into: Any, parameters: _Parameters) -> None:
    """Add parameters to a message."""
    for name, value in parameters.items():
        setattr(into[name], _FIELDS[type(value)], value)


_FIELDS = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
