"""Tell the right lung from the left one, and the thirds of their height."""

import numpy as np
import numpy.typing as npt

from imaging.lungs import CELL_MM, Lungs, labelled
from imaging.morphology import dilate, erode
from imaging.volume import FloatArray

_MAX_ERODED_CELLS = 4
"""In all 16 scans that were tried, the lungs part after 3 cells of 4 mm or fewer."""
_MIN_SHARE = 0.25
"""Of the other lung's size: a smaller part is a piece of one lung."""
_TRACHEA_CM2 = 6.0
"""A slice with no more air than this may show the trachea alone."""


def between(lungs: Lungs) -> tuple[tuple[float, float], ...]:
    """Return for each slice the x indices where the right lung ends and the left one begins."""
    sides = _two_lungs(lungs)
    if sides is None:
        return ()
    right, left = (np.asarray(side.any(axis=1)) for side in sides)  # (z, x)
    both = np.flatnonzero(right.any(axis=1) & left.any(axis=1))
    if not both.size:
        return ()
    width = right.shape[1]
    # the outer edges of the last cell of the right lung and of the first of the left one
    ends = width - right[both, ::-1].argmax(axis=1)
    begins = left[both].argmax(axis=1)
    # slices that show one lung, or none, have the limits of the nearest that show both
    cells = (np.arange(lungs.shape[0]) + 0.5) * right.shape[0] / lungs.shape[0] - 0.5
    nearest = np.abs(cells[:, None] - both).argmin(axis=1)
    scale = lungs.shape[2] / width
    first, last = (_rounded(limit[nearest] * scale - 0.5) for limit in (ends, begins))
    return tuple(zip(first, last, strict=True))


def _two_lungs(lungs: Lungs) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Return the cells of the right and of the left lung; None where there are not two.

    They are connected by airways, and where they touch. So they are eroded until they part, and
    dilated again.
    """
    # the smallest erosion that leaves two large regions disturbs their shape least
    for radius in range(_MAX_ERODED_CELLS + 1):
        labels = labelled(erode(lungs.air, radius))
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0  # label 0 is the background
        large, second = np.argsort(sizes)[::-1][:2] if len(sizes) > 2 else (0, 0)
        if sizes[second] > _MIN_SHARE * sizes[large]:
            grown = [dilate((labels == one).astype(np.uint8), radius) for one in (large, second)]
            one, other = (np.asarray(mask & lungs.air) > 0 for mask in grown)
            middle = [np.nonzero(mask)[2].mean() for mask in (one, other)]
            return (one, other) if middle[0] < middle[1] else (other, one)
    return None


def zones(lungs: Lungs) -> tuple[float, float] | None:
    """Return the z indices at a third and at two thirds of the lungs' height."""
    sections = lungs.air.sum(axis=(1, 2)) * CELL_MM**2 / 100
    slices = np.flatnonzero(sections > _TRACHEA_CM2)
    if not slices.size:
        return None
    first, stop = int(slices[0]), int(slices[-1]) + 1
    scale = lungs.shape[0] / len(sections)
    lower, upper = _rounded(
        np.array([first + (stop - first) * part for part in (1 / 3, 2 / 3)]) * scale - 0.5
    )
    return lower, upper


def _rounded(values: FloatArray) -> list[float]:
    return [round(float(value), 1) for value in values]
