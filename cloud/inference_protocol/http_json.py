"""The protocol's messages as bodies of HTTP: JSON, with raw tensors behind it where wanted.

Nothing of a body is trusted: sizes and types are checked before memory is taken for them.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

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
        given = json.loads(body[:size])
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request is not JSON: {error!s:.200}") from None
    fields = _object(given, "the request")
    parameters = _object(fields.get("parameters", {}), "parameters")
    request, rest = pb.ModelInferRequest(id=_text(fields, "id", "")), memoryview(body)[size:]
    _put_parameters(request.parameters, parameters)
    used = 0
    for one in _objects(fields, "inputs"):
        used += _put_input(request, one, rest[used:])
    if used != len(rest):
        raise InvalidRequest(f"{len(rest)} bytes after the JSON, the inputs have {used}")
    binary = {"": parameters.get("binary_data_output") is True}
    for one in _objects(fields, "outputs"):
        output = request.outputs.add(name=_text(one, "name"))
        wanted = _object(one.get("parameters", {}), "parameters of an output")
        _put_parameters(output.parameters, wanted)
        if "binary_data" in wanted:
            binary[output.name] = wanted["binary_data"] is True
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


def _put_input(request: pb.ModelInferRequest, given: Mapping[str, Any], rest: memoryview) -> int:
    """Add an input to the request, and return how many bytes after the JSON are its own."""
    shape = given.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(side) is int and 0 <= side < 2**31 for side in shape)
    ):
        raise InvalidRequest(f"shape {shape!r:.100}, expected a list of numbers of 0 or more")
    tensor = request.inputs.add(
        name=_text(given, "name"), datatype=_text(given, "datatype"), shape=shape
    )
    parameters = _object(given.get("parameters", {}), "parameters of an input")
    _put_parameters(tensor.parameters, parameters)
    size = parameters.get(BINARY_SIZE)
    if size is None:
        request.raw_input_contents.append(_bytes_of(given.get("data")))
        return 0
    if "data" in given or type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequest(
            f"{BINARY_SIZE} {size!r:.50} of {tensor.name!r:.50}, expected its bytes after the"
            f" JSON: {len(rest)} are there"
        )
    request.raw_input_contents.append(bytes(rest[:size]))
    return size


def _bytes_of(data: Any) -> bytes:
    """Return the values of an input, a list of lists or flat, as bytes."""
    for _ in range(MAX_DIMENSIONS):
        if not (isinstance(data, list) and data and isinstance(data[0], list)):
            break
        if not all(isinstance(one, list) for one in data):
            raise InvalidRequest("data is a list of lists and of others")
        data = list(itertools.chain.from_iterable(data))
    if not isinstance(data, list) or not all(type(one) is int and 0 <= one < 256 for one in data):
        raise InvalidRequest("data is no list of numbers from 0 to 255, as UINT8 has them")
    return bytes(data)


def _put_parameters(into: Any, parameters: Mapping[str, Any]) -> None:
    """Add parameters to a message."""
    for name, value in parameters.items():
        field = _FIELDS.get(type(value))
        if field is None or (type(value) is int and not -(2**63) <= value < 2**63):
            raise InvalidRequest(f"parameter {name!r:.50} is {value!r:.50}, expected a plain value")
        checked = _valid(value) if isinstance(value, str) else value
        setattr(into[_valid(name)], field, checked)


_FIELDS = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what}: {value!r:.50}, expected an object")
    return value


def _objects(fields: Mapping[str, Any], name: str) -> Iterable[dict[str, Any]]:
    values = fields.get(name, [])
    if not isinstance(values, list) or len(values) > MAX_TENSORS:
        raise InvalidRequest(f"{name}: {values!r:.50}, expected a list of at most {MAX_TENSORS}")
    return [_object(one, name) for one in values]


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {value!r:.50}, expected a text")
    return _valid(value)


def _valid(text: str) -> str:
    """Return a text of JSON that UTF-8 can write: a lone half of a surrogate pair it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{text!r:.50} is no Unicode text") from None
    return text
