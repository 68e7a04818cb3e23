"""A volume file (NIfTI, NRRD, MetaImage) as a study; its values are HU as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging import complaints, nifti
from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt, UnreadableFile
from imaging.hounsfield import AIR_HU, MAX_HU, require_hu
from imaging.orientation import to_patient_axes
from imaging.slices import MAX_PIXEL_MM, MIN_PIXEL_MM
from imaging.stack import MAX_SPACING_MM, MAX_VOXELS, MIN_EXTENT_MM, MIN_SPACING_MM
from imaging.study import Study, StudyHeader
from imaging.volume import Geometry, HuArray, Volume

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
        with complaints.caught():
            hu, geometry = to_patient_axes(*_contents(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise UnreadableFile(_said(error, format_of(file)), file) from None
    _require_sane(hu, geometry, file)
    require_hu(hu, file)
    header = StudyHeader(series_description=file.name, transfer_syntax=format_of(file))
    return Study(Volume(hu, geometry, file.name, file.name), file, header)


def _contents(file: Path) -> tuple[HuArray, Geometry]:
    header = nifti.read_header(file) if format_of(file) == "NIfTI" else None
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
        return _hu(nifti.read_voxels(file, header).reshape(reader.GetSize()[::-1]), file), geometry
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
