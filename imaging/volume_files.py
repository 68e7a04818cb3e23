"""A volume file (NIfTI, NRRD, MetaImage) as a study; its values are HU as they stand.

The voxels of a NIfTI file, read to the last byte.

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
import SimpleITK as sitk

from imaging import c_stderr
from imaging.dicom.layout import AIR_HU, MAX_HU, require_hu
from imaging.dicom.stack import (
    MAX_PIXEL_MM,
    MAX_SPACING_MM,
    MAX_VOXELS,
    MIN_EXTENT_MM,
    MIN_PIXEL_MM,
    MIN_SPACING_MM,
)
from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt, UnreadableFile
from imaging.volume import Geometry, HuArray, Study, StudyHeader, Volume, to_patient_axes

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


FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mhd": "MetaImage",
    ".mha": "MetaImage",
}

_IO = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_DIRECTION_TOLERANCE = 1e-3


def format_of(path: Path) -> str:
    """The format that the file's name states; empty for another kind of file."""
    name = path.name.lower()
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), "")


def read_file(file: Path) -> Study:
    """The study of one volume file.

    Raises:
        UnreadableFile: the file is damaged.
        NotCt: it holds no three-dimensional picture in HU.
        IncompleteSeries, IrregularGeometry: it is too short, or its geometry impossible.
    """
    try:
        with c_stderr.caught():
            hu, geometry = to_patient_axes(*_contents(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise UnreadableFile(_said(error, format_of(file)), file) from None
    _require_sane(hu, geometry, file)
    require_hu(hu, file)
    header = StudyHeader(series_description=file.name, transfer_syntax=format_of(file))
    return Study(Volume(hu, geometry, file.name, file.name), file, header)


def _contents(file: Path) -> tuple[HuArray, Geometry]:
    header = read_header(file) if format_of(file) == "NIfTI" else None
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IO[format_of(file)])
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    _require_volume(reader, file)
    x, y, z = reader.GetSpacing()
    origin_x, origin_y, origin_z = reader.GetOrigin()
    geometry = Geometry(
        (z, y, x), (origin_x, origin_y, origin_z), np.array(reader.GetDirection()).reshape(3, 3)
    )
    if header:
        return _hu(read_voxels(file, header).reshape(reader.GetSize()[::-1]), file), geometry
    return _hu(sitk.GetArrayFromImage(reader.Execute()), file), geometry


def _said(error: Exception, kind: str) -> str:
    """The reason, which ITK puts last, after its source file and addresses."""
    line = (str(error).strip().splitlines() or ["no reason given"])[-1].split("): ")[-1][:120]
    return f"damaged {kind} file ({line}): send it again"


def _require_volume(reader: sitk.ImageFileReader, file: Path) -> None:
    size = reader.GetSize()
    if len(size) != 3 or min(size) < 2:
        shape = " x ".join(map(str, size))
        raise NotCt(f"is {shape}, not a three-dimensional volume: give one CT series", file)
    if reader.GetNumberOfComponents() != 1:
        reason = f"{reader.GetNumberOfComponents()} values a voxel: give a CT series in HU"
        raise NotCt(reason, file)
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        shape = " x ".join(map(str, size))
        reason = f"{shape} voxels are more than {MAX_VOXELS}: give a smaller volume"
        raise IrregularGeometry(reason, file)


def _hu(values: npt.NDArray[Any], file: Path) -> HuArray:
    if values.dtype.kind not in "iuf":
        raise NotCt(f"voxels of type {values.dtype}, not numbers: give a CT series in HU", file)
    if values.dtype.kind == "f":
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise NotCt(f"{bad} voxels are NaN or infinite: export the CT series again", file)
        values = np.rint(values)
    return np.asarray(np.clip(values, AIR_HU, MAX_HU).astype(np.int16))


def _require_sane(hu: HuArray, geometry: Geometry, file: Path) -> None:
    direction, (z, y, x) = geometry.direction, geometry.spacing_mm
    if not np.allclose(direction.T @ direction, np.eye(3), atol=_DIRECTION_TOLERANCE):
        reason = f"axes are not perpendicular ({direction.round(3).tolist()})"
        raise IrregularGeometry(f"{reason}: resample the volume", file)
    pixels = all(MIN_PIXEL_MM <= v <= MAX_PIXEL_MM for v in (y, x))
    if not (pixels and MIN_SPACING_MM <= z <= MAX_SPACING_MM):
        reason = f"spacing {z:g} x {y:g} x {x:g} mm (z, y, x) is not that of a chest CT"
        raise IrregularGeometry(f"{reason}: give the original volume", file)
    if hu.shape[0] * z < MIN_EXTENT_MM:
        reason = f"{hu.shape[0]} slices every {z:.2f} mm are {hu.shape[0] * z:.1f} mm"
        reason = f"{reason}, at least {MIN_EXTENT_MM:g} mm are needed"
        raise IncompleteSeries(f"{reason}: give the whole volume", file)
