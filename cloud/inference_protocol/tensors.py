"""The tensors of the Open Inference Protocol: what a request must hold, and what an answer holds.

Input   ROI          UINT8  (n, z, y, x)  voxels of the HU window, as in `imaging.volume`
Output  PROBABILITY  FP64   (n, 1)        of being a nodule, 0 to 1
        DIAMETER_MM  FP64   (n, 1)
        MALIGNANCY   FP64   (n, 1)        malignancy score, 0 to 1
        TEXTURE      BYTES  (n, 1)        "ground glass", "part-solid" or "solid"
        MASK         BOOL   (n, z, y, x)  the voxels of the nodule
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos import inference_pb2 as pb
from protos.errors import InvalidRequest, TooLarge

INPUT = "ROI"

Shape = tuple[int, ...]

Encode = Callable[[Sequence[Reading]], bytes]

_DATA_TYPES: Mapping[str, "pb.DataType.ValueType"] = {
    "UINT8": pb.TYPE_UINT8,
    "FP64": pb.TYPE_FP64,
    "BYTES": pb.TYPE_STRING,
    "BOOL": pb.TYPE_BOOL,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor by ``name``: ``dims`` is its shape without the batch, ``encode`` for outputs."""

    name: str
    datatype: str
    dims: Shape
    encode: Encode = lambda _: b""

    @property
    def data_type(self) -> "pb.DataType.ValueType":
        """The data type in a model's configuration."""
        return _DATA_TYPES[self.datatype]

    def metadata(self) -> pb.ModelMetadataResponse.TensorMetadata:
        """Return the tensor as a model's metadata has it; -1 is a batch of any size."""
        return pb.ModelMetadataResponse.TensorMetadata(
            name=self.name, datatype=self.datatype, shape=(-1, *self.dims)
        )


def input_of(roi_shape: Shape) -> Tensor:
    """Return the input of a model that reads ROIs ``(z, y, x)``."""
    return Tensor(INPUT, "UINT8", roi_shape)


def outputs_of(roi_shape: Shape) -> tuple[Tensor, ...]:
    """Return the outputs of a model that reads ROIs ``(z, y, x)``."""

    def number(name: str) -> Encode:
        return lambda all_: np.array([getattr(one, name) for one in all_], "<f8").tobytes()

    def masks(readings: Sequence[Reading]) -> bytes:
        return np.stack([one.mask for one in readings]).astype("?").tobytes()

    def texts(readings: Sequence[Reading]) -> bytes:  # each after its length
        encoded = [one.texture.encode() for one in readings]
        return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)

    numbers = ("probability", "diameter_mm", "malignancy")
    return (
        *(Tensor(name.upper(), "FP64", (1,), number(name)) for name in numbers),
        Tensor("TEXTURE", "BYTES", (1,), texts),
        Tensor("MASK", "BOOL", roi_shape, masks),
    )


def decode_rois(request: pb.ModelInferRequest, roi_shape: Shape, max_batch: int) -> UInt8Array:
    """Return the ROIs of a request, uint8 ``(n, z, y, x)``.

    Raises:
        InvalidRequest: its input is not the model's.
        TooLarge: it has more than ``max_batch`` ROIs.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = [one.name for one in request.inputs[:4]]
        raise InvalidRequest(f"inputs {names!r:.100}, expected one input, {INPUT!r}")
    tensor = request.inputs[0]
    check_datatype(INPUT, tensor.datatype)
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest("shared memory is not offered: send the voxels in the request")
    shape = tuple(tensor.shape)
    if len(shape) != 4 or shape[1:] != roi_shape or shape[0] < 1:
        said = "[n, " + ", ".join(map(str, roi_shape)) + "]"
        raise InvalidRequest(f"shape {list(shape[:8])!r:.100} of {INPUT}, expected {said}, n >= 1")
    if shape[0] > max_batch:
        raise TooLarge(f"{shape[0]} ROIs in one request, the limit is {max_batch}")
    raws, numbers = request.raw_input_contents, tensor.contents.uint_contents
    if len(raws) > 1 or (raws and numbers):
        raise InvalidRequest(f"{len(raws)} raw contents and {len(numbers)} numbers for one input")
    given, expected = raws[0] if raws else numbers, math.prod(shape)  # bounded by now
    if len(given) != expected:
        what = f"{len(given)} {'bytes' if raws else 'values'} of {INPUT}"
        raise InvalidRequest(f"{what}, expected {expected} for its shape")
    try:
        return np.frombuffer(bytes(given), np.uint8).reshape(shape)
    except ValueError:
        raise InvalidRequest(f"a value of {INPUT} is above 255") from None


def check_datatype(name: str, datatype: str) -> None:
    """Raise `InvalidRequest` for voxels that are not bytes, as those of the HU window are."""
    if datatype != "UINT8":
        raise InvalidRequest(
            f"datatype {datatype!r:.50} of {name!r:.50}, expected 'UINT8':"
            " [-1000, 400] HU as 0 to 255"
        )


def requested(request: pb.ModelInferRequest, roi_shape: Shape) -> list[Tensor]:
    """Return the outputs that a request wants, or all; raise `InvalidRequest` for any other."""
    known = {tensor.name: tensor for tensor in outputs_of(roi_shape)}
    names = [output.name for output in request.outputs]
    if len(names) > len(set(names)):  # each would be a copy of its own
        raise InvalidRequest(f"an output is requested twice, expected each of {list(known)} once")
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(f"output {output.name!r:.100}, expected one of {list(known)}")
        for form in ("classification", "shared_memory_region"):
            if form in output.parameters:
                raise InvalidRequest(f"{form} of {output.name} is not offered")
    return [known[output.name] for output in request.outputs] or list(known.values())


def encode_readings(
    readings: Sequence[Reading], tensors: Sequence[Tensor]
) -> tuple[list[pb.ModelInferResponse.InferOutputTensor], list[bytes]]:
    """Return the outputs of a response, and the raw content of each."""
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=(len(readings), *tensor.dims)
        )
        for tensor in tensors
    ]
    return outputs, [tensor.encode(readings) for tensor in tensors]


def decode_output(datatype: str, raw: bytes) -> list[float] | list[bool] | list[str]:
    """Return the values of a raw output, for JSON."""
    if datatype == "BYTES":
        values, at = list[str](), 0
        while at < len(raw):
            start = at + 4
            at = start + int.from_bytes(raw[at:start], "little")
            values.append(raw[start:at].decode())
        return values
    numbers: list[float] = np.frombuffer(raw, "<f8" if datatype == "FP64" else "?").tolist()
    return numbers
