"""What the values and the geometry of a volume file must be: those of a chest CT in HU."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.continuity import require_continuous
from imaging.dicom.layout import AIR_HU, MAX_HU, require_hu
from imaging.dicom.stack import (
    MAX_PIXEL_MM,
    MAX_SPACING_MM,
    MAX_VOXELS,
    MIN_EXTENT_MM,
    MIN_PIXEL_MM,
    MIN_SPACING_MM,
    require_extent,
)
from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt
from imaging.slices import SliceMeasures, measures_of
from imaging.volume import FloatArray, Geometry, HuArray


def require_volume(size: Sequence[int], values: int, file: Path) -> None:
    """Require three dimensions, one value per voxel, and not too many voxels."""
    shape = " x ".join(map(str, size))
    if len(size) != 3 or min(size) < 2:
        raise NotCt(f"is {shape}, not a three-dimensional volume: give one CT series", file)
    if values != 1:
        raise NotCt(f"has {values} values per voxel, expected 1: give a CT series in HU", file)
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        reason = f"{shape} voxels are more than {MAX_VOXELS}: give a smaller volume"
        raise IrregularGeometry(reason, file)


def hu_of(planes: Iterable[npt.NDArray[Any]], shape: Sequence[int], file: Path) -> HuArray:
    """Round and clip planes to HU in int16; refuse what is not a finite number.

    One plane after the other: the values may take four times the memory of HU.
    """
    hu, bad = np.empty(shape, np.int16), 0
    for values, out in zip(planes, hu, strict=True):
        if values.dtype.kind not in "iuf":
            reason = f"voxels of type {values.dtype} are not numbers: give a CT series in HU"
            raise NotCt(reason, file)
        if values.dtype.kind == "f":
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            values = np.rint(values)
        with np.errstate(invalid="ignore"):  # NaN
            np.clip(values, AIR_HU, MAX_HU, out=out, casting="unsafe")
    if bad:
        raise NotCt(f"{bad} voxels are NaN or infinite: export the CT series again", file)
    return hu


def require_sane(hu: HuArray, geometry: Geometry, file: Path) -> tuple[SliceMeasures, ...]:
    """Require the spacing, extent and values of a chest CT; return what is measured of slices."""
    z, y, x = geometry.spacing_mm
    require_perpendicular(geometry.direction, file)
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
    require_extent(hu.shape, geometry.spacing_mm, file)
    measures = measures_of(hu, (y, x))
    require_hu(measures, file)
    names = [f"{number} from the feet" for number in range(1, len(hu) + 1)]
    require_continuous(hu, geometry.spacing_mm, names, [file] * len(hu), measures)
    return measures


def require_perpendicular(direction: FloatArray, file: Path) -> None:
    """Require the axes of a volume, the columns of ``direction``, to be perpendicular."""
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        reason = f"axes are not perpendicular ({direction.round(3).tolist()})"
        raise IrregularGeometry(f"{reason}: resample the volume", file)
