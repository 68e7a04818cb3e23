"""From the screening network's maps to candidates: peaks, their position and diameter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, Geometry, Triple, triple

FloatMap = npt.NDArray[np.float32]

MASS_MM = 30.0
"""A lesion wider than this is a mass by definition. A region of 48 mm does not show what is around
it: the second reader measures it, and the edge decides."""

STRIDE = 4
"""Voxels of the box per cell of the maps, along each axis."""

_BLOCK = 256


@dataclass(frozen=True)
class Candidate:
    """A possible nodule of the screening network.

    ``centre_mm`` is ``(x, y, z)`` LPS, ``index_zyx`` the same point in the preprocessed box,
    ``score`` its calibrated probability in [0, 1].
    """

    centre_mm: Triple
    index_zyx: Triple
    diameter_mm: float
    score: float


@dataclass(frozen=True, eq=False)
class Peaks:
    """The peaks of one map, strongest first.

    ``logit`` is ``(n,)``, ``index_zyx`` ``(n, 3)`` in voxels of the box, ``diameter_mm`` ``(n,)``.
    """

    logit: FloatArray
    index_zyx: FloatArray
    diameter_mm: FloatArray

    def at(self, chosen: npt.NDArray[Any] | Sequence[int]) -> "Peaks":
        """Return those that a mask or their numbers choose."""
        return Peaks(self.logit[chosen], self.index_zyx[chosen], self.diameter_mm[chosen])


def find_peaks(
    maps: FloatMap,
    *,
    least_logit: float,
    most: int,
    prior: Callable[[FloatArray], FloatArray] | None = None,
    voxel_mm: float = 1.0,
) -> Peaks:
    """Return peaks of the heat map of at least ``least_logit``, at most ``most`` of them.

    ``maps`` is ``(5, z, y, x)``: heat logit, offsets z, y, x in cells, ln of the diameter in
    voxels of ``voxel_mm``. ``prior`` of the diameters in mm is added to the logits. Of two peaks
    closer than half the larger one's diameter (or one cell) the stronger stays.
    """
    heat = maps[0]
    # cells that are the maximum of their neighbourhood, with offsets and diameters of 2 to 100 mm
    places = np.flatnonzero((heat >= least_logit) & (heat >= _highest_neighbour(heat)))
    values = maps.reshape(len(maps), -1)[:, places].astype(np.float64)
    diameter = np.exp(np.clip(values[4], *np.log(np.array([2.0, 100.0]) / voxel_mm)))
    if prior is not None:
        values[0] += prior(diameter * voxel_mm)
    # strongest first; the cell's centre plus the offset, in voxels
    order = np.argsort(-values[0], kind="stable")[: 4 * most]
    cells = np.stack(np.unravel_index(places[order], heat.shape), 1)
    values, diameter = values[:, order], diameter[order]
    offset = np.clip(values[1:4].T, -1.5, 1.5)
    index = (cells + 0.5 + offset) * STRIDE - 0.5
    keep = _apart(index, diameter, most)
    return Peaks(values[0, keep], index[keep], diameter[keep] * voxel_mm)


def strongest(parts: Sequence[Peaks], most: int) -> Peaks:
    """Merge the peaks of several maps of one box, strongest first, apart as in `find_peaks`."""
    names = ("logit", "index_zyx", "diameter_mm")
    every = Peaks(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    ranked = every.at(np.argsort(-every.logit, kind="stable"))
    return ranked.at(_apart(ranked.index_zyx, ranked.diameter_mm, most))


def to_candidates(
    peaks: Peaks, geometry: Geometry, calibration: tuple[float, float]
) -> list[Candidate]:
    """Return candidates with score sigmoid(slope * logit + intercept) (Platt, 1999)."""
    slope, intercept = calibration
    score = sigmoid(slope * peaks.logit + intercept).tolist()
    world, index = geometry.to_world(peaks.index_zyx), peaks.index_zyx
    rows = zip(world, index, peaks.diameter_mm.tolist(), score, strict=True)
    return [Candidate(triple(mm), triple(at), wide_mm, chance) for mm, at, wide_mm, chance in rows]


def _highest_neighbour(heat: FloatMap) -> FloatMap:
    """Return the maximum over each cell's 3 x 3 x 3 neighbourhood."""
    planes = np.stack([cv2.dilate(plane, np.ones((3, 3))) for plane in heat])
    columns = cv2.dilate(planes.reshape(len(planes), -1), np.ones((3, 1)))
    return np.asarray(columns, np.float32).reshape(heat.shape)


def _apart(index: FloatArray, diameter: FloatArray, most: int) -> list[int]:
    kept: list[int] = []
    # greedy: the strongest first, and each next one only if all kept ones are far enough away.
    # Distances come by the block, since a call for each candidate takes six times as long
    for first in range(0, len(index), _BLOCK):
        block = np.arange(first, min(first + _BLOCK, len(index)))
        others = np.concatenate([np.array(kept, np.intp), block])
        squares = (np.subtract.outer(at[block], at[others]) ** 2 for at in index.T)
        reach = np.maximum(np.maximum.outer(diameter[block], diameter[others]) / 2, STRIDE)
        close = np.sqrt(sum(squares)) < reach
        lost, among = close[:, : len(kept)].any(1), close[:, len(kept) :]
        for place, number in enumerate(block.tolist()):
            if len(kept) == most:
                return kept
            if not lost[place]:
                kept.append(number)
                lost |= among[place]
    return kept


def sigmoid(logit: npt.ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-logit)), of any shape."""
    with np.errstate(over="ignore"):  # exp overflows to infinity below -709, and 0 is right there
        return np.asarray(1 / (1 + np.exp(-np.asarray(logit))))
