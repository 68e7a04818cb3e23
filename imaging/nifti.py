"""The voxels of a NIfTI file, read to the last byte.

The library beneath ITK turns NaN into zero, which is water, and fills what a cut file lacks.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
}
_MAX_OFFSET = 1 << 20  # extensions lie before the voxels, of a few kB at most
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class _Fields:
    """Where one version of the format keeps what is needed (nifti1.h, nifti2.h)."""

    size: int
    dim: tuple[int, str]
    datatype: tuple[int, str]
    offset: tuple[int, str]
    slope: tuple[int, str]


_VERSIONS = (
    _Fields(348, (40, "i2"), (70, "i2"), (108, "f4"), (112, "f4")),
    _Fields(540, (16, "i8"), (12, "i2"), (168, "i8"), (176, "f8")),
)


@dataclass(frozen=True)
class Header:
    """Size of the voxel array ``(..., z, y, x)``, its type, where it begins, its scale."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float


def read_header(file: Path) -> Header:
    """What the header says of the voxels; geometry is left to ITK.

    Raises:
        ValueError: it is no NIfTI header, or of a voxel type that no CT has.
    """
    with _opened(file) as stream:
        return _header(_read(stream, 552))


def read_voxels(file: Path, header: Header) -> npt.NDArray[Any]:
    """The voxels in their scale, ``(..., z, y, x)``.

    Raises:
        ValueError: the file ends before the voxels do.
    """
    size = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    with _opened(file) as stream:
        content = _read(stream, header.offset + size)[header.offset :]
    if len(content) < size:
        raise ValueError(f"voxels are cut off, {len(content)} of {size} bytes")
    voxels = np.frombuffer(content, header.dtype).reshape(header.shape)
    if header.slope in (0.0, 1.0) and (header.slope == 0.0 or header.intercept == 0.0):
        return voxels
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused later
        return np.asarray(voxels * header.slope + header.intercept)


def _opened(file: Path) -> Any:  # gzip and plain files share no public type
    with file.open("rb") as stream:
        packed = stream.read(2) == _GZIP_MAGIC
    return gzip.open(file, "rb") if packed else file.open("rb")


def _read(stream: Any, size: int) -> bytes:
    try:
        return bytes(stream.read(size))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the compressed file is damaged: {error}") from None


def _header(content: bytes) -> Header:
    for fields in _VERSIONS:
        for order in "<>":
            if len(content) >= fields.size and _integer(content, (0, "i4"), order) == fields.size:
                return _parsed(content, fields, order)
    raise ValueError("no NIfTI header")


def _parsed(content: bytes, fields: _Fields, order: str) -> Header:
    at, kind = fields.dim
    dim = np.frombuffer(content, order + kind, 8, at)
    rank = int(dim[0])
    if not 1 <= rank <= 7 or (dim[1 : rank + 1] < 1).any():
        raise ValueError(f"impossible dimensions {dim.tolist()}")
    code = _integer(content, fields.datatype, order)
    if code not in _DTYPES:
        raise ValueError(f"voxels of type {code}, not numbers")
    at, kind = fields.slope
    slope, intercept = (float(v) for v in np.frombuffer(content, order + kind, 2, at))
    if not np.isfinite([slope, intercept]).all():
        raise ValueError(f"scale {slope} and offset {intercept} are not finite")
    shape = tuple(int(n) for n in dim[rank:0:-1])
    offset = _integer(content, fields.offset, order)
    if not 0 <= offset <= _MAX_OFFSET:
        raise ValueError(f"voxels begin at byte {offset}")
    return Header(shape, np.dtype(order + _DTYPES[code]), offset, slope, intercept)


def _integer(content: bytes, field: tuple[int, str], order: str) -> int:
    at, kind = field
    value = float(np.frombuffer(content, order + kind, 1, at)[0])
    return int(value) if np.isfinite(value) else -1
