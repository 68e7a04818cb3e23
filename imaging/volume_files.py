"""Read a volume file (NIfTI, NRRD, MetaImage) as a study; its values are HU as stored.

ITK gives the geometry of every format. The voxels of NIfTI are read by nibabel: the library
beneath ITK turns NaN into zero, which is water, and fills in what a truncated file lacks.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.volumeutils import array_from_file

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
from imaging.volume import Geometry, HuArray, Study, StudyHeader, Volume, to_patient_axes, triple

FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mhd": "MetaImage",
    ".mha": "MetaImage",
}
_IO = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}


def format_of(path: Path) -> str:
    """Return the format that the file's name states; empty for another kind of file."""
    name = path.name.lower()
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), "")


def read_file(file: Path) -> Study:
    """Read the study of one volume file.

    Raises:
        UnreadableFile: the file is damaged.
        NotCt: it holds no three-dimensional image in HU.
        IncompleteSeries, IrregularGeometry: it is too short, or its geometry impossible.
    """
    try:
        with c_stderr.captured():
            hu, geometry = to_patient_axes(*_contents(file))
    except (RuntimeError, ValueError, OSError, EOFError, zlib.error) as error:
        # ITK puts the reason last, after its source file and addresses
        line = (str(error).strip().splitlines() or ["no reason given"])[-1].split("): ")[-1][:120]
        reason = f"damaged {format_of(file)} file ({line}): send it again"
        raise UnreadableFile(reason, file) from None
    _require_sane(hu, geometry, file)
    header = StudyHeader(series_description=file.name, transfer_syntax=format_of(file))
    return Study(Volume(hu, geometry, file.name, file.name), file, header)


def study_of_array(values: npt.NDArray[Any], geometry: Geometry, source: Path) -> Study:
    """Check voxels in HU ``(z, y, x)`` as those of a file; ``source`` names them in errors.

    Raises:
        NotCt: a voxel is NaN or infinite, or the values cannot be HU.
        IncompleteSeries, IrregularGeometry: it is too short, or its geometry impossible.
    """
    hu, geometry = to_patient_axes(_hu(values, source), geometry)
    _require_sane(hu, geometry, source)
    return Study(Volume(hu, geometry), source)


def _contents(file: Path) -> tuple[HuArray, Geometry]:
    """Read voxels and geometry as the file orders its axes."""
    nifti = _nifti_header(file) if format_of(file) == "NIfTI" else None
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IO[format_of(file)])
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    _require_volume(reader, file)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    geometry = Geometry(triple(reader.GetSpacing()[::-1]), triple(reader.GetOrigin()), direction)
    if nifti:
        return _hu(_nifti_voxels(file, nifti).reshape(reader.GetSize()[::-1]), file), geometry
    return _hu(sitk.GetArrayFromImage(reader.Execute()), file), geometry


def _nifti_header(file: Path) -> Nifti1Header:
    """Read a NIfTI header of either byte order; ITK does not read version 2."""
    size = Nifti1Header.sizeof_hdr
    with _opened(file) as stream:
        block = stream.read(size)
    if len(block) == size:
        for order in "<>":
            # nibabel's own checks mend some damage in silence; ours refuse it
            header = Nifti1Header(block, order, check=False)
            if header["sizeof_hdr"] == size:
                _require_nifti_voxels(header)
                return header
    raise ValueError("it has no NIfTI-1 header")


def _require_nifti_voxels(header: Nifti1Header) -> None:
    rank, *dim = header["dim"].tolist()
    if not 1 <= rank <= 7 or min(dim[:rank]) < 1:
        raise ValueError(f"dimensions {[rank, *dim]} are impossible")
    code = int(header["datatype"])
    # the codes of integers and floats (nifti1.h)
    if code not in {2, 4, 8, 16, 64, 256, 512, 768, 1024}:
        raise ValueError(f"voxels of type {code} are not numbers")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, intercept]).all():
        raise ValueError(f"scale {slope} and offset {intercept} are not finite")
    # the fraction is cut off; extensions lie before the voxels, of a few kB at most
    if not -1 < header["vox_offset"] <= 1 << 20:
        raise ValueError(f"the voxels cannot begin at byte {header['vox_offset']}")


def _nifti_voxels(file: Path, header: Nifti1Header) -> npt.NDArray[Any]:
    """Read the voxels in their scale, ``(..., z, y, x)``; ValueError if the file is truncated."""
    rank, *dim = header["dim"].tolist()
    offset, dtype = int(header["vox_offset"]), header.get_data_dtype()
    with _opened(file) as stream:
        # mapped into memory the file could change, or end, while it is used
        try:
            voxels = array_from_file(dim[:rank], dtype, stream, offset, mmap=False).T
        except OSError as error:
            raise ValueError(str(error).split(" from ")[0]) from None
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (slope, intercept) == (1, 0):  # a slope of 0 says that there is no scale
        return np.asarray(voxels)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused later
        return np.asarray(voxels * slope + intercept)


def _opened(file: Path) -> Any:  # gzip and plain files share no public type
    with file.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if compressed else file.open("rb")


def _require_volume(reader: sitk.ImageFileReader, file: Path) -> None:
    size = reader.GetSize()
    shape = " x ".join(map(str, size))
    if len(size) != 3 or min(size) < 2:
        raise NotCt(f"is {shape}, not a three-dimensional volume: give one CT series", file)
    if (values := reader.GetNumberOfComponents()) != 1:
        raise NotCt(f"has {values} values per voxel, expected 1: give a CT series in HU", file)
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        reason = f"{shape} voxels are more than {MAX_VOXELS}: give a smaller volume"
        raise IrregularGeometry(reason, file)


def _hu(values: npt.NDArray[Any], file: Path) -> HuArray:
    """Round and clip values to HU in int16; refuse what is not a finite number."""
    if values.dtype.kind not in "iuf":
        reason = f"voxels of type {values.dtype} are not numbers: give a CT series in HU"
        raise NotCt(reason, file)
    if values.dtype.kind == "f":
        if bad := int(values.size - np.count_nonzero(np.isfinite(values))):
            raise NotCt(f"{bad} voxels are NaN or infinite: export the CT series again", file)
        values = np.rint(values)
    return np.asarray(np.clip(values, AIR_HU, MAX_HU).astype(np.int16))


def _require_sane(hu: HuArray, geometry: Geometry, file: Path) -> None:
    direction, (z, y, x) = geometry.direction, geometry.spacing_mm
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        reason = f"axes are not perpendicular ({direction.round(3).tolist()})"
        raise IrregularGeometry(f"{reason}: resample the volume", file)
    pixels = all(MIN_PIXEL_MM <= v <= MAX_PIXEL_MM for v in (y, x))
    if not (pixels and MIN_SPACING_MM <= z <= MAX_SPACING_MM):
        reason = (
            f"spacing {z:g} x {y:g} x {x:g} mm (z, y, x) is not that of a chest CT"
            f" (slices {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm,"
            f" pixels {MIN_PIXEL_MM:g} to {MAX_PIXEL_MM:g} mm)"
        )
        raise IrregularGeometry(f"{reason}: give the original volume", file)
    if hu.shape[0] * z < MIN_EXTENT_MM:
        reason = f"{hu.shape[0]} slices every {z:.2f} mm are {hu.shape[0] * z:.1f} mm"
        reason = f"{reason}, at least {MIN_EXTENT_MM:g} mm are needed"
        raise IncompleteSeries(f"{reason}: give the whole volume", file)
    require_hu(hu, file)
