"""What the service takes: pure checks of a header and of an ROI against its limits.

Regions smaller than the model reads: mirrored to its size, and their masks cut back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.roi import cut_roi, roi_start
from imaging.volume import WINDOW_HU, UInt8Array
from protos.errors import InvalidRequest, TooLarge, VersionMismatch
from protos.messages import Header, Roi

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


MAX_KEY_CHARACTERS = 128
SHOWN_CHARACTERS = 100
"""What a caller sent is repeated to this length at most, in answers and in the log."""

SPACING_RANGE_MM = (0.1, 5.0)


@dataclass(frozen=True)
class Limits:
    """What one stream may hold, and what the model reads.

    ``roi_shape`` is ``(z, y, x)``; ``model_version`` is that of the model served.
    """

    max_rois: int
    max_roi_voxels: int
    roi_shape: tuple[int, int, int]
    model_version: str


def check_header(header: Header, limits: Limits) -> None:
    """Refuses a header that no stream can be opened with.

    Raises:
        InvalidRequest: the key is missing, key or version is too long, or the budget is no time.
        TooLarge: it announces more ROIs than a study may have.
        VersionMismatch: it expects another model.
    """
    if not 0 < len(header.study_key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"study_key has {len(header.study_key)} characters, 1 to {MAX_KEY_CHARACTERS} are right"
        )
    if len(header.model_version) > MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"model_version has {len(header.model_version)} characters, "
            f"up to {MAX_KEY_CHARACTERS} are right"
        )
    if not (math.isfinite(header.budget_s) and header.budget_s > 0):
        raise InvalidRequest(
            f"budget_s is {header.budget_s}: a positive number of seconds is right"
        )
    if header.roi_count > limits.max_rois:
        raise TooLarge(f"{header.roi_count} ROIs announced, a study may have {limits.max_rois}")
    if not compatible(header.model_version, limits.model_version):
        raise VersionMismatch(
            f"model version {header.model_version!r:.{SHOWN_CHARACTERS}} expected, "
            f"{limits.model_version!r} is served"
        )


def compatible(expected: str, served: str) -> bool:
    """Whether a caller that expects one version can use the other: any, or the same major one.

    What stands before the first dot counts; a version without dots, such as a digest, is all of it.
    """
    return not expected or expected.partition(".")[0] == served.partition(".")[0]


def check_roi(roi: Roi, limits: Limits) -> None:
    """Refuses an ROI that the model cannot read, or would read wrongly.

    Raises:
        TooLarge: it has more voxels than an ROI may have.
        InvalidRequest: its shape, window, spacing or score is not what can be read.
    """
    if roi.voxels.size > limits.max_roi_voxels:
        raise TooLarge(f"{roi.voxels.size} voxels, an ROI may have {limits.max_roi_voxels}")
    if not may_be_padded(roi.voxels.shape, limits.roi_shape):
        raise InvalidRequest(
            f"shape {roi.voxels.shape}, the model reads {limits.roi_shape} "
            f"or what is a {SMALLEST}rd of that or more along each side"
        )
    if roi.window_hu != WINDOW_HU:
        raise InvalidRequest(f"window_hu {roi.window_hu}, the model reads {WINDOW_HU}")
    low, high = SPACING_RANGE_MM
    if not all(low <= spacing <= high for spacing in roi.spacing_mm):
        raise InvalidRequest(f"spacing_mm {roi.spacing_mm}, {low} to {high} is right")
    if not 0.0 <= roi.edge_score <= 1.0:
        raise InvalidRequest(f"edge_score {roi.edge_score}, 0 to 1 is right")
