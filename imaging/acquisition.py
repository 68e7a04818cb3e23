"""Measure what shows a change of scanner or protocol: HU of air and blood, and noise."""

from dataclasses import dataclass

import cv2
import numpy as np

from imaging.lungs import Lungs
from imaging.morphology import erode
from imaging.volume import HuArray, Triple

_AIR_HU = -1022, -800  # lower is padding
_TISSUE_HU, _SOFT_HU = (-20, 600), (-150, 400)
_INNER_CELLS, _MIN_CELLS, _MIN_PIXELS, _SMOOTHED = 2, 100, 1000, 21
_NOISE_SLICES, _NOISE_MM, _MAX_NOISE_HU = 3, 6.0, 150


@dataclass(frozen=True)
class Acquisition:
    """What the voxels tell of scanner and protocol; None where too few show it.

    Attributes:
        air_hu: most frequent around the patient.
        blood_hu: median in heart and vessels beside it, 30 to 60 without contrast medium.
        noise_hu: most frequent standard deviation within 6 mm of soft tissue (Christianson et al.,
            American Journal of Roentgenology 205:W93-W99, 2015).
    """

    air_hu: float | None = None
    blood_hu: float | None = None
    noise_hu: float | None = None


def acquisition_of(hu: HuArray, spacing_mm: Triple, lungs: Lungs) -> Acquisition:
    """Measure a volume ``(z, y, x)`` with axes to the head, to the back and to the left."""
    return Acquisition(_air(lungs), _blood(lungs), _noise(hu, spacing_mm, lungs))


def _air(lungs: Lungs) -> float | None:
    low, high = _AIR_HU
    hu, lung = lungs.hu[::2], lungs.air[::2]  # every second slice is enough
    around = hu[(hu > low) & (hu < high) & (lung == 0)]
    if around.size < _MIN_CELLS:
        return None
    # blankets and the table are less frequent
    counts = np.bincount(around - low, minlength=_SMOOTHED)
    return low + float(np.convolve(counts, np.hamming(_SMOOTHED), mode="same").argmax())


def _blood(lungs: Lungs) -> float | None:
    """Look where the heart lies: the middle of the lungs' width, in their lower half, in front."""
    ends = [np.flatnonzero(lungs.air.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    parts = zip(ends, ((0.25, 0.5), (0.15, 0.6), (0.25, 0.75)), strict=True)
    box = (slice(*np.quantile(end, part).astype(int)) for end, part in parts)
    cells, (low, high) = lungs.hu[tuple(box)], _TISSUE_HU
    if cells.size < _MIN_CELLS:
        return None
    inner = cells[erode(((cells > low) & (cells < high)).astype(np.uint8), _INNER_CELLS) > 0]
    return float(np.median(inner)) if inner.size >= _MIN_CELLS else None


def _noise(hu: HuArray, spacing_mm: Triple, lungs: Lungs) -> float | None:
    (first, *start), (last, *stop) = lungs.start, lungs.stop
    y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    size = tuple(max(3, round(_NOISE_MM / mm)) for mm in spacing_mm[:0:-1])  # (x, y)
    counts = np.zeros(_MAX_NOISE_HU)
    for z in np.linspace(first, last, _NOISE_SLICES + 2)[1:-1].astype(int):
        plane = hu[z, y, x].astype(np.float32)
        mean, square = cv2.blur(plane, size), cv2.sqrBoxFilter(plane, cv2.CV_32F, size)
        soft = (mean > _SOFT_HU[0]) & (mean < _SOFT_HU[1])
        spread = np.sqrt(np.maximum(square - mean * mean, 0)[soft])
        counts += np.histogram(spread, _MAX_NOISE_HU, (0, _MAX_NOISE_HU))[0]
    most = float(np.convolve(counts, [1, 2, 3, 2, 1], mode="same").argmax()) + 0.5
    return most if counts.sum() >= _MIN_PIXELS else None
