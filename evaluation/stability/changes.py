"""Changes of a lung box that should not change the reading of a location in it.

Each returns a new lung box with its geometry, so that a location keeps its point in the patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.preprocess import Preprocessed
from imaging.volume import (
    WINDOW_HU,
    FloatArray,
    Geometry,
    HuArray,
    Triple,
    UInt8Array,
    Volume,
    from_window,
    to_patient_axes,
    triple,
)
from models.insertion.donors import Donor
from models.insertion.insert import Insertion, insert

CUT_MM = 50
"""Side of the box that is cut out of a scan."""

NOISE_HU = 20.0

PASTED_MM = (12.0, 22.0)
"""Least and largest distance between a location and the centre of a nodule that is pasted."""

LARGEST_PASTED_MM = 10.0
"""Largest diameter of a nodule that is pasted."""

APART_MM = 3.0
"""Least distance between the rim of a location and a pasted nodule."""

LUNG_HU = (-960.0, -600.0)
"""Range of the mean HU of lung with small vessels."""

_TRIES = 300


@dataclass(frozen=True)
class Ball:
    """A nodule or another location in a lung box: centre ``(z, y, x)`` in voxels, and diameter."""

    index_zyx: Triple
    diameter_mm: float

    @property
    def radius_mm(self) -> float:
        """Return half the diameter; 2 mm for a smaller one."""
        return max(self.diameter_mm / 2, 2.0)

    def distance_mm(self, index_zyx: Sequence[float] | FloatArray) -> float:
        """Return the distance of a point from the centre, in voxels of 1 mm."""
        return float(np.linalg.norm(np.subtract(index_zyx, self.index_zyx)))


def part_of(box: Preprocessed, start: FloatArray, stop: FloatArray) -> Preprocessed:
    """Return the part of the box from voxel ``start`` to before ``stop``, ``(z, y, x)``."""
    part = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    voxels = np.ascontiguousarray(box.voxels[part])
    return replace(box, voxels=voxels, geometry=box.geometry.cropped(start))


def cut_around(box: Preprocessed, location: Ball) -> Preprocessed:
    """Cut a box of `CUT_MM` around the location; less at the faces."""
    start = np.rint(location.index_zyx) - CUT_MM // 2
    stop = np.minimum(start + CUT_MM, box.voxels.shape)
    return part_of(box, np.maximum(start, 0.0), stop)


def shifted_grid(volume: Volume, box: Preprocessed, axis: int, shift_mm: float) -> Preprocessed:
    """Preprocess a scan again on a grid that lies ``shift_mm`` further along ``axis``.

    ``volume`` is the scan that ``box`` was made of. Its HU are sampled as for the box, by linear
    interpolation inside of the same lungs, as if these began that much later.
    """
    assert box.lungs is not None
    assert box.source is not None
    hu, source = to_patient_axes(volume.hu, volume.geometry)
    part = tuple(slice(a, b) for a, b in zip(box.lungs.start, box.lungs.stop, strict=True))
    step = np.zeros(3)
    step[axis] = shift_mm / box.geometry.spacing_mm[axis]
    geometry = box.geometry.cropped(step)
    # two voxels more on each side: nothing is sampled outside
    image = sitk.GetImageFromArray(np.pad(to_window(hu[part]), 2, mode="edge").astype(np.float32))
    image.SetSpacing(source.spacing_mm[::-1])
    first = source.to_index(geometry.origin_mm) - np.array(box.lungs.start) + 2
    grid = sitk.ResampleImageFilter()
    grid.SetSize(box.voxels.shape[::-1])
    grid.SetOutputSpacing(geometry.spacing_mm[::-1])
    grid.SetOutputOrigin((first * source.spacing_mm)[::-1].tolist())
    grid.SetInterpolator(sitk.sitkLinear)
    voxels = np.rint(sitk.GetArrayFromImage(grid.Execute(image))).astype(np.uint8)
    return replace(box, voxels=voxels, geometry=geometry)


def to_window(hu: HuArray | FloatArray) -> UInt8Array:
    """Return HU as uint8 of the window, rounded and clipped."""
    low, high = WINDOW_HU
    scaled = (np.asarray(hu, np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def mirrored(box: Preprocessed, axis: int) -> Preprocessed:
    """Return the mirror image along ``axis`` of the array ``(z, y, x)``."""
    start, signs = np.zeros(3), np.ones(3)
    start[axis], signs[2 - axis] = box.voxels.shape[axis] - 1, -1
    old = box.geometry
    geometry = Geometry(old.spacing_mm, triple(old.to_world(start)), old.direction * signs)
    return replace(box, voxels=np.ascontiguousarray(np.flip(box.voxels, axis)), geometry=geometry)


def noisy(box: Preprocessed, rng: np.random.Generator) -> Preprocessed:
    """Add Gaussian noise of `NOISE_HU` standard deviation to each voxel, clipped to the window."""
    low, high = WINDOW_HU
    noise = rng.standard_normal(box.voxels.shape, np.float32) * (NOISE_HU * 255 / (high - low))
    voxels = np.clip(np.rint(box.voxels + noise), 0, 255).astype(np.uint8)
    return replace(box, voxels=voxels)


def pasted(
    box: Preprocessed,
    location: Ball,
    nodules: Sequence[Ball],
    donors: Sequence[Donor],
    rng: np.random.Generator,
) -> Preprocessed | None:
    """Insert one of the ``donors`` into lung `PASTED_MM` away, clear of the other ``nodules``.

    It is inserted as `models.insertion.insert` does it, with a soft edge.
    """
    size = np.array(box.voxels.shape)
    for _ in range(_TRIES if donors else 0):
        donor = donors[int(rng.integers(len(donors)))]
        direction, distance = rng.standard_normal(3), rng.uniform(*PASTED_MM)
        at = location.index_zyx + direction * (distance / np.linalg.norm(direction))
        reach = donor.reach_mm + 2  # the edge is soft
        low, high = np.floor(at - reach), np.ceil(at + reach) + 1
        touches = any(
            one.distance_mm(at) < one.radius_mm + APART_MM + reach for one in (location, *nodules)
        )
        if touches or (low < 0).any() or (high > size).any() or not box.inside(at[None])[0]:
            continue
        here = box.voxels[_slices(low, high)]
        around = here[_away(low, high, triple(at)) <= reach]
        if _is_lung(around):
            return _inserted(box, donor, triple(at), low, high, around)
    return None


def _inserted(
    box: Preprocessed,
    donor: Donor,
    at: Triple,
    low: FloatArray,
    high: FloatArray,
    around: UInt8Array,
) -> Preprocessed:
    # 12 mm of surroundings tell wall from vessel
    first, last = np.maximum(low - 12, 0), np.minimum(high + 12, box.voxels.shape)
    part = part_of(box, first, last)
    insertion = Insertion(
        0,
        donor,
        centre_mm=triple(box.geometry.to_world(at)),
        lung_hu=float(np.median(from_window(around))),
    )
    new = insert(Volume(from_window(part.voxels), part.geometry), [insertion])
    voxels = box.voxels.copy()
    voxels[_slices(first, last)] = to_window(new.hu)
    return replace(box, voxels=voxels)


def _is_lung(levels: npt.NDArray[Any]) -> bool:
    """Return whether the mean of ``levels`` of the window is that of lung."""
    low, high = to_window(np.array(LUNG_HU))
    return bool(low <= levels.mean() <= high)


def _slices(start: FloatArray, stop: FloatArray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def _away(low: FloatArray, high: FloatArray, centre_zyx: Triple) -> FloatArray:
    """Return the distance from the centre of each voxel between ``low`` and before ``high``."""
    z, y, x = np.ogrid[_slices(low, high)]
    a, b, c = centre_zyx
    return np.asarray(np.sqrt((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2))
