"""Changes of a lung box that should not change the reading of a location in it.

Each returns a new lung box with its geometry, so that a location keeps its point in the patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
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
    to_patient_axes,
    triple,
)

CUT_MM = 50
"""Side of the box that is cut out of a scan."""

NOISE_HU = 20.0


@dataclass(frozen=True)
class Ball:
    """A nodule or another location in a lung box: centre ``(z, y, x)`` in voxels, and diameter."""

    index_zyx: Triple
    diameter_mm: float

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
