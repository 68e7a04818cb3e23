"""Regions smaller than the model reads: mirrored to its size, and their masks cut back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imaging.roi import cut_roi, roi_start
from imaging.volume import UInt8Array

Shape = tuple[int, int, int]
"""Voxels (z, y, x)."""

SMALLEST = 3
"""A region may have a third of the model's side, along each axis."""


def may_be_padded(shape: tuple[int, ...], full: Shape) -> bool:
    """Whether a region of ``shape`` shows enough to be read as one of ``full``."""
    return len(shape) == 3 and all(
        side // SMALLEST <= given <= side for given, side in zip(shape, full, strict=True)
    )


def padded(voxels: UInt8Array, full: Shape) -> UInt8Array:
    """uint8 of ``full`` with ``voxels`` ``(z, y, x)`` in its middle and their mirror image around.

    The middle voxel stays the middle voxel, as `imaging.roi.cut_roi` counts it.
    """
    if voxels.shape == full:
        return voxels
    return cut_roi(voxels, np.array(voxels.shape) // 2, full)


def unpadded(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The middle of ``mask`` ``(z, y, x)`` that a region of ``shape`` was padded around."""
    start = roi_start(np.array(mask.shape) // 2, shape)
    return mask[tuple(slice(a, a + side) for a, side in zip(start, shape, strict=True))]
