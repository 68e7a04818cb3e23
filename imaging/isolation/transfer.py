"""Send data from one process to another: JSON for the values, shared memory for the arrays.

The receiver builds the types that it expects and no others. Nothing is unpickled, since the sender
has handled bytes that may be hostile. Dataclasses, enums, paths, tuples, numbers, text, None and
arrays can be sent.
"""

import math
import mmap
import os
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

MAX_LINE = 16 << 20
"""Longest message in bytes: header, names of other series, and so on, but no voxel."""

_ALIGNED = 64  # bytes, for the processor's vector instructions

T = TypeVar("T")


@dataclass(frozen=True)
class Ways:
    """How a study is read.

    Attributes:
        series: as for `imaging.read.read_study`.
        whole: its voxels are sent and nothing else, of a study that is not in a hurry.
        selects: the caller chooses among its series.
        ahead: it still arrives; its path follows when it is complete.
        settled_s: as for `imaging.dicom.ahead.ReadAhead`.
    """

    series: str = ""
    whole: bool = False
    selects: bool = False
    ahead: bool = False
    settled_s: float = 0.0


class UnexpectedData(Exception):
    """What arrived is not of the expected type."""


def to_json(value: object, file: int) -> object:
    """Convert data for `json.dumps`; its arrays are appended to ``file``.

    Raises:
        OSError: the file cannot grow: no memory is left.
        TypeError: the value is of a type that cannot be sent.
    """
    if isinstance(value, np.ndarray):
        return _append(value, file)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [to_json(one, file) for one in value]
    if is_dataclass(value):
        return {one.name: to_json(getattr(value, one.name), file) for one in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str | bool | int | float | NoneType):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def from_json(kind: type[T], value: Any, file: int) -> T:
    """Build a ``kind`` from what `to_json` made; its arrays are private maps of ``file``.

    Raises:
        UnexpectedData: the value is no ``kind``.
    """
    size = os.fstat(file).st_size
    memory = mmap.mmap(file, size, access=mmap.ACCESS_COPY) if size else b""
    try:
        built: T = _build(kind, value, memory)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnexpectedData(f"expected a {kind.__name__}: {error}") from None
    return built


class _Placed(np.ndarray):
    """An array that lies in the file already, from ``start``."""

    start: int


class Room:
    """Memory at the end of ``file`` for one array, which `to_json` then does not copy.

    It is taken from the system at once: that takes longer than to fill it.
    """

    def __init__(self, file: int, size: int) -> None:
        self._start = -(-os.fstat(file).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(file, self._start + size)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        self._memory = mmap.mmap(file, size, flags=flags, offset=self._start)

    def __call__(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return the array, or one elsewhere if it is too large for the room."""
        if (size := math.prod(shape)) > len(self._memory):
            return np.empty(shape, np.uint8)
        array = np.frombuffer(self._memory, np.uint8, size).reshape(shape).view(_Placed)
        array.start = self._start
        return array


def _append(array: npt.NDArray[Any], file: int) -> dict[str, object]:
    if isinstance(array, _Placed):
        return {"dtype": array.dtype.str, "shape": list(array.shape), "start": array.start}
    start = -(-os.fstat(file).st_size // _ALIGNED) * _ALIGNED
    view = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
    at = 0
    while at < len(view):
        at += os.pwrite(file, view[at : at + (1 << 30)], start + at)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "start": start}


def _build(kind: Any, value: Any, memory: mmap.mmap | bytes) -> Any:
    kind = _without_alias(kind)
    origin, args, make = get_origin(kind), get_args(kind), kind
    if origin in (Union, UnionType):
        some = next(one for one in args if one is not NoneType)
        return None if value is None else _build(some, value, memory)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        return tuple(_build(one, part, memory) for one, part in zip(args, value, strict=True))
    if origin is np.ndarray:
        (scalar,) = get_args(args[1])
        return _array(np.dtype(scalar), value, memory)
    if is_dataclass(kind):
        types = _hints(kind)  # type: ignore[arg-type]
        parts = {name: _build(hint, value[name], memory) for name, hint in types}
        return make(**parts)
    if issubclass(kind, Enum):
        return kind[value]
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value


@cache
def _hints(kind: Any) -> list[tuple[str, Any]]:
    """Return the name and the type of each field of a dataclass."""
    hints = get_type_hints(kind)
    return [(one.name, hints[one.name]) for one in fields(kind)]


def _without_alias(kind: Any) -> Any:
    """Return what a type alias stands for: numpy 2.5 declares ``NDArray`` as one (PEP 695)."""
    while hasattr(alias := get_origin(kind), "__value__"):
        kind = alias.__value__[get_args(kind)]
    return kind


def _array(dtype: np.dtype[Any], value: Any, memory: mmap.mmap | bytes) -> npt.NDArray[Any]:
    shape, start = [int(side) for side in value["shape"]], int(value["start"])
    count = math.prod(shape)
    if np.dtype(value["dtype"]) != dtype or min(shape, default=0) < 0 or start < 0:
        raise ValueError(f"{value} is no array of {dtype}")
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(memory, dtype, count, start).reshape(shape)
