"""The residual: what makes the INT8 file of a model from its INT4 file, byte for byte.

The INT4 weights predict the INT8 ones: dequantised, and quantised again with the INT8 scales. Only
the differences are stored. They are small, so that a common compressor needs about four bits for
each. The rest of the INT8 file is compressed as it is. Any two files have a residual: what the
first does not predict is stored whole. A residual to nothing, ``b""``, is the packed file.

    magic | SHA-256 of the INT4 file | of the INT8 file | size | index | packed parts | packed rest

Nothing here says who made a residual. Whoever applies one compares the result with a hash that he
trusts.
"""

import hashlib
import lzma
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from models.runtime.errors import DamagedArtifact

MAGIC = b"OVRES\x00\x01\n"
MOST_BYTES = 128 * 2**20
"""Largest file that a residual makes: what it states is not trusted yet."""

_HEAD = struct.Struct("<8s32s32sQI")
_ENTRY = struct.Struct("<IQQBI")
_LEAST_BYTES = 256
"""Smaller tensors stay in the rest, where they compress better."""
_MOST_PARTS = 100_000
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**20, "lc": 0, "pb": 0}]

Bytes = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int64]


class How(IntEnum):
    """What a part is the difference to."""

    NOTHING = 0
    SAME = 1  # the bytes of the tensor of that number
    REQUANTISED = 2  # its values, quantised as in the INT8 file


class _Packing(IntEnum):
    STORED = 0
    DEFLATE = 1
    HUFFMAN = 2  # without the search for repetitions: best for noise of few values
    LZMA = 3


class _Part(NamedTuple):
    """One tensor: its number in the file, its bytes there, and the packed difference."""

    number: int
    start: int
    length: int
    how: How
    packed: bytes


@dataclass(frozen=True, eq=False)
class _Scale:
    """The quantisation of one tensor: scale, zero point and axis."""

    scale: npt.NDArray[np.float64]
    zero: Levels
    axis: int


def make_residual(first: bytes, final: bytes) -> bytes:
    """Return the residual that makes ``final`` from ``first``."""
    parts = _parts(first, final)
    index = zlib.compress(b"".join(_ENTRY.pack(*p[:4], len(p.packed)) for p in parts), 9)
    digests = (hashlib.sha256(first).digest(), hashlib.sha256(final).digest())
    head = _HEAD.pack(MAGIC, *digests, len(final), len(index))
    rest = _pack(b"".join(_between(final, parts)))
    return b"".join((head, index, *(part.packed for part in parts), rest))


def apply_residual(first: bytes, residual: bytes) -> bytes:
    """Return the file that a residual makes from ``first``.

    Raises:
        DamagedArtifact: the residual is damaged, or of another file than ``first``.
    """
    try:
        magic, base, made, size, index_bytes = _HEAD.unpack_from(residual)
        if magic != MAGIC:
            raise DamagedArtifact("this is no residual of this version of the program")
        if base != hashlib.sha256(first).digest():
            raise DamagedArtifact("the residual is to another file")
        final = _applied(first, residual, int(size), int(index_bytes))
    except DamagedArtifact:
        raise
    except Exception as error:  # whatever damage does to a compressor, numpy or protobuf
        raise DamagedArtifact(f"the residual is damaged: {error}") from error
    if hashlib.sha256(final).digest() != made:
        raise DamagedArtifact("the residual is damaged: the file that it makes has another hash")
    return final


def _applied(first: bytes, residual: bytes, size: int, index_bytes: int) -> bytes:
    """Put the file together; errors are those of damage."""
    at = _HEAD.size + index_bytes
    index = _inflate(residual[_HEAD.size : at], _MOST_PARTS * _ENTRY.size, zlib.MAX_WBITS)
    entries = list(_ENTRY.iter_unpack(index))
    if not 0 <= size <= MOST_BYTES or size < sum(entry[2] for entry in entries):
        raise ValueError(f"a file of {size} bytes, expected at most {MOST_BYTES}")
    final, done, parts = bytearray(size), 0, list[tuple[int, int, How, bytes]]()
    spans = list[tuple[int, int]]()
    for number, start, length, how, packed in entries:
        if start < done or start + length > size:
            raise ValueError("a part lies outside the file")
        spans.append((done, start))
        done = start + length
        parts.append((number, start, How(how), _unpack(residual[at : at + packed], length)))
        at += packed
    spans.append((done, size))
    rest, taken = _unpack(residual[at:], sum(stop - start for start, stop in spans)), 0
    for start, stop in spans:
        final[start:stop] = rest[taken : taken + stop - start]
        taken += stop - start
    model = _Model.of(first)
    for number, start, how, difference in parts:
        if how is How.REQUANTISED:
            continue
        before = model.raw_at(number) if how is How.SAME else b""
        final[start : start + len(difference)] = _sum(before, difference)
    if any(how is How.REQUANTISED for _, _, how, _ in parts):
        target = _Model.of(bytes(final))  # its levels are 0 still, its scales are there
        for number, start, how, difference in parts:
            if how is How.REQUANTISED:
                before = model.predict(target, number)
                final[start : start + len(difference)] = _sum(before, difference)
    return bytes(final)


class _Model:
    """The tensors of an ONNX file, in its order and by name, and how each is quantised."""

    def __init__(self, tensors: list[Any], scales: Mapping[str, _Scale]) -> None:
        self.tensors, self._scales = tensors, scales
        self._by_name = {tensor.name: tensor for tensor in tensors}

    @classmethod
    def of(cls, content: bytes) -> "_Model":
        """Read a file; one that is no ONNX file has no tensors."""
        try:
            graph = onnx.load_from_string(content).graph
        except Exception:  # protobuf's decode errors have no public base
            return cls([], {})
        tensors = list(graph.initializer)
        values = {tensor.name: tensor for tensor in tensors}
        scales = dict[str, _Scale]()
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.input[1] in values:
                zero = values.get(node.input[2]) if len(node.input) > 2 else None
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                scales[node.input[0]] = _Scale(
                    numpy_helper.to_array(values[node.input[1]]).astype(np.float64),
                    np.zeros((), np.int64) if zero is None else _levels(zero),
                    axis,
                )
        return cls(tensors, scales)

    def raw_at(self, number: int) -> bytes:
        """Return the bytes of the tensor of that number."""
        return bytes(self.tensors[number].raw_data)

    def predict(self, target: "_Model", number: int) -> bytes:
        """Return the levels of a tensor of ``target`` that this model's tensor of its name has.

        Raises:
            ValueError: it has none, or of another shape.
        """
        wanted = target.tensors[number]
        own = self._by_name.get(wanted.name)
        here, there = self._scales.get(wanted.name), target._scales.get(wanted.name)
        if own is None or here is None or there is None or list(own.dims) != list(wanted.dims):
            raise ValueError(f"{wanted.name} is not predicted")
        levels, shape = _levels(own), tuple(wanted.dims)
        value = (levels - _along(here.zero, here.axis, shape)) * _along(
            here.scale, here.axis, shape
        )
        # every operation is exact or rounded as IEEE 754 says: all machines predict the same
        scaled = np.rint(value / _along(there.scale, there.axis, shape))
        low, high = (-128, 127) if wanted.data_type == TensorProto.INT8 else (0, 255)
        made = np.clip(scaled + _along(there.zero, there.axis, shape), low, high)
        return bytes(made.astype(np.int64).astype(np.uint8).tobytes())


def _parts(first: bytes, final: bytes) -> list[_Part]:
    """Return the tensors of ``final`` that are packed by themselves, in the order of the file."""
    one, two = _Model.of(first), _Model.of(final)
    parts, at = list[_Part](), 0
    for number, tensor in enumerate(two.tensors):
        raw = bytes(tensor.raw_data)
        if len(raw) < _LEAST_BYTES or (start := final.find(raw, at)) < 0:
            continue
        at = start + len(raw)
        ways = {How.NOTHING: b""}
        if number < len(one.tensors) and len(one.raw_at(number)) == len(raw):
            ways[How.SAME] = one.raw_at(number)
        if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8):
            with suppress(ValueError):
                ways[How.REQUANTISED] = one.predict(two, number)
        differences = {how: _difference(raw, before) for how, before in ways.items()}
        how = min(differences, key=lambda one: len(zlib.compress(differences[one], 1)))
        parts.append(_Part(number, start, len(raw), how, _pack(differences[how])))
    return parts


def _between(final: bytes, parts: list[_Part]) -> Iterator[bytes]:
    """Yield what lies outside the parts."""
    at = 0
    for part in parts:
        yield final[at : part.start]
        at = part.start + part.length
    yield final[at:]


def _levels(tensor: Any) -> Levels:
    """Return the levels of a tensor; numpy does not compute in the type of those of INT4."""
    signed = tensor.data_type in (TensorProto.INT8, TensorProto.INT4)
    narrow = numpy_helper.to_array(tensor).astype(np.int8 if signed else np.uint8)
    return np.asarray(narrow.astype(np.int64))


def _along(values: npt.NDArray[Any], axis: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return values for each channel so that they spread over the tensor.

    Raises:
        ValueError: they do not fit.
    """
    if values.size == 1:
        return values.reshape(())
    axis = axis + len(shape) if axis < 0 else axis
    if values.ndim != 1 or not 0 <= axis < len(shape) or shape[axis] != values.size:
        raise ValueError("scales of another shape")
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _difference(raw: bytes, before: bytes) -> bytes:
    """Return the bytes of ``raw`` less those of ``before``, modulo 256, small ones near 0.

    The differences are folded (0, -1, 1, -2, …), so that small ones have the same high bits.
    """
    if not before:
        return raw
    less = np.frombuffer(raw, np.uint8) - np.frombuffer(before, np.uint8)
    signed = less.view(np.int8).astype(np.int16)
    return np.where(signed < 0, -2 * signed - 1, 2 * signed).astype(np.uint8).tobytes()


def _sum(before: bytes, folded: bytes) -> bytes:
    """Return what `_difference` was made from.

    Raises:
        ValueError: the lengths differ.
    """
    if not before:
        return folded
    values = np.frombuffer(folded, np.uint8)
    less = np.where(values & 1, 255 - (values >> 1), values >> 1).astype(np.uint8)
    if len(before) != len(less):
        raise ValueError("a part is of another length than what it is the difference to")
    return (np.frombuffer(before, np.uint8) + less).tobytes()


def _pack(data: bytes) -> bytes:
    """Return the shortest packing, its kind first."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    tried = {
        _Packing.STORED: data,
        _Packing.DEFLATE: zlib.compress(data, 9, -15),
        _Packing.HUFFMAN: huffman.compress(data) + huffman.flush(),
        _Packing.LZMA: lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA),
    }
    kind = min(tried, key=lambda one: len(tried[one]))
    return bytes((kind,)) + tried[kind]


def _unpack(packed: bytes, size: int) -> bytes:
    """Return packed data of that size; no more than that is ever made.

    Raises:
        ValueError: it is of another size; errors of the compressors are those of damage.
    """
    kind, data = _Packing(packed[0]), packed[1:]
    if kind is _Packing.LZMA:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
        data = unpacker.decompress(data, size + 1) if size else b""
    elif kind is not _Packing.STORED:
        data = _inflate(data, size + 1, -15)
    if len(data) != size:
        raise ValueError(f"a part of {len(data)} bytes, expected {size}")
    return data


def _inflate(data: bytes, most: int, window: int) -> bytes:
    return zlib.decompressobj(window).decompress(data, most)
