"""Tell lung tissue from gas and from disease: candidates at it, and what of the air is no lung.

The lung region also reaches into bowel and heart. A nodule has lung tissue at its surface, however
large it is; gas in bowel and stomach is emptier than lung (`at_lung`).

Not aerated are ground glass and consolidation in compact patches. Vessels, walls of airways and
nodules are too thin to count. Consolidation counts where lung lies above and below it. One that
reaches the diaphragm or fills a whole lobe shows in the air that one side has less than the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imaging.lungs import CELL_MM, GAP_MM, Lungs, spine_of
from imaging.morphology import closed_along_z, erode, opened
from imaging.sides import zones
from imaging.volume import FloatArray, HuArray, Triple

REACH_MM = 10.0
"""Distance from a candidate's surface to lung tissue. At all 27 marked nodules and lesions of 17
scans it is at most 3.6 mm, at 845 nodules in cubes of 50 mm at most 4.4 mm."""
_LUNG_TISSUE_HU = (-965, -500)
_GAS_HU = -970
_GAS_CELLS = 1.5
"""Radius in cells of 6 mm: a ball that fits into a bowel, not into most airways."""
_CLOSER_MM = 4.0
"""Gas that is nearer than lung tissue by more than this is not that of the lung. At the same
nodules, emphysema included, tissue is nearer than gas by 14 mm and more."""
_HAZY_HU = -700
"""Above it a cell well inside the lungs holds ground glass, or air and tissue in one cell."""
_DENSE_HU, _FAT_HU = -320, -200
_PATCH_MM = 10.0
"""Radius of a ball that fits into a consolidation, not between the vessels of a hilum."""
_TRACHEA_CELLS = 38
"""Slices with less air hold no lung, only trachea: 600 mm2."""
_EVEN_GAS_HU, _EVEN_HU = -950, 40
"""Gas may read -935 to -1016, as in tracheas. So even are at most 19 ml of lung a side."""
_SMOOTH_BLOCKS, _VESSEL_HU = 5, 60
"""Means of blocks differ by more within each 40 mm of lung, but for 4 ml a side in all 18 scans.
Without vessels they differ by less, also with noise of 30 HU in cells of 4 mm."""
_ASIDE_MM = 20.0
"""Of the spine from the middle, at most 18 mm. In half a chest, other bone is taken for it."""


@dataclass(frozen=True)
class LungPart:
    """The air in one side of the chest (``name`` is whole), or in a third or half of that side."""

    side: str  # right or left, of the patient; one where the spine is in doubt
    name: str
    air_ml: float
    empty_ml: float  # of it, gas, or without vessels


def at_lung(
    lungs: Lungs, spacing_mm: Triple, index_zyx: FloatArray, diameter_mm: FloatArray
) -> npt.NDArray[np.bool_]:
    """Tell which candidates have lung tissue near their surface, bool ``(n,)``.

    ``index_zyx`` ``(n, 3)`` are voxels of the volume, of ``spacing_mm``.
    """
    low, high = _LUNG_TISSUE_HU
    tissue = lungs.air & ((lungs.hu > low) & (lungs.hu < high)).astype(np.uint8)
    inner = tissue & erode(lungs.air, 1)  # at its surface gas and wall mix in one cell
    gas = opened((lungs.hu < _GAS_HU).astype(np.uint8), _GAS_CELLS)
    masks = [mask > 0 for mask in (inner, opened(tissue, 1), gas)]
    cell_mm = np.asarray(lungs.shape) * spacing_mm / lungs.air.shape
    at, reach = (index_zyx + 0.5) * spacing_mm / cell_mm, diameter_mm / 2 + REACH_MM
    # the cells within reach
    first = np.maximum(np.floor(at - reach[:, None] / cell_mm).astype(int), 0)
    last = np.minimum(np.ceil(at + reach[:, None] / cell_mm).astype(int), lungs.air.shape)
    # most lie in tissue themselves: no gas is that much closer than the middle of their own cell
    own = np.clip(np.floor(at).astype(int), 0, np.asarray(lungs.air.shape) - 1)
    close = np.linalg.norm((own + 0.5 - at) * cell_mm, axis=1) <= np.minimum(reach, _CLOSER_MM)
    near = np.asarray((masks[0] & masks[1])[tuple(own.T)] & close)
    for n in np.flatnonzero(~near):
        sides = list(map(slice, first[n].tolist(), last[n].tolist()))
        # the squares of their distances along each axis, and in space
        z, y, x = (
            ((np.arange(side.start, side.stop) + 0.5 - middle) * mm) ** 2
            for side, middle, mm in zip(sides, at[n], cell_mm, strict=True)
        )
        far = np.add.outer(np.add.outer(z, y), x)
        to_inner, to_tissue, to_gas = (far[m[*sides]].min(initial=np.inf) ** 0.5 for m in masks)
        near[n] = to_inner <= reach[n] and to_tissue <= to_gas + _CLOSER_MM
    return near


def opaque_share(lungs: Lungs) -> float:
    """Return the part of the lungs that is ground glass or consolidation, from 0 to 1."""
    inner = erode(lungs.air, 1)
    hazy = opened(inner & (lungs.hu > _HAZY_HU).astype(np.uint8), 1)
    # tissue between lung above and lung below, in the slices of the lungs
    lung = lungs.air * (lungs.air.sum(axis=(1, 2)) >= _TRACHEA_CELLS)[:, None, None]
    lung = lung.astype(np.uint8)
    tissue = (1 - lung) & (lungs.hu > _DENSE_HU).astype(np.uint8)
    between = closed_along_z(lung, int(GAP_MM / CELL_MM)) & tissue
    dense = opened(between, _PATCH_MM / CELL_MM)
    hazy_part = float(hazy.sum()) / max(float(inner.sum()), 1.0)
    dense_part = float(dense.sum()) / max(float(lung.sum() + dense.sum()), 1.0)
    return min(hazy_part + dense_part, 1.0)


def parts_of(lungs: Lungs) -> tuple[LungPart, ...]:
    """Measure both sides of the chest, which the spine parts: thirds by height, halves by depth."""
    air = _in_pairs(lungs.air, np.add) * (CELL_MM**3 / 1000)
    empty = air * _empty(lungs)
    slices = (np.arange(len(air)) + 0.5) * 2 * lungs.shape[0] / len(lungs.air) - 0.5
    third = np.searchsorted(zones(lungs) or (0.0, 0.0), slices)
    rows = np.flatnonzero(air.any(axis=(0, 2)))
    spine, middle = spine_of(lungs.air, lungs.hu) // 2, int(rows[0] + rows[-1] + 1) // 2
    tissue = np.cumsum((lungs.hu > _FAT_HU).sum(axis=(0, 1)))  # from the right
    aside = 2 * spine - np.searchsorted(tissue, tissue[-1] * np.array([0.05, 0.95])).mean()
    sides = ("right", "left") if abs(aside) * CELL_MM <= _ASIDE_MM else ("one", "one")
    thirds = {f"{name} third": third == n for n, name in enumerate(("lower", "middle", "upper"))}
    halves = {"front half": np.s_[:, :middle], "back half": np.s_[:, middle:]}
    return tuple(
        LungPart(side, name, float(air[x][part].sum()), float(empty[x][part].sum()))
        for side, x in zip(sides, (np.s_[..., :spine], np.s_[..., spine:]), strict=True)
        for name, part in {"whole": np.s_[:], **thirds, **halves}.items()
    )


def _empty(lungs: Lungs) -> npt.NDArray[np.bool_]:
    """Mark the blocks of 2 x 2 x 2 cells that are gas, or have no vessel within 20 mm."""
    mean: HuArray = _in_pairs(np.minimum(lungs.hu, 1000), np.add) >> 3  # metal x 8 > int16
    spread = _in_pairs(lungs.hu, np.maximum) - _in_pairs(lungs.hu, np.minimum)
    air = _in_pairs(lungs.air, np.minimum)
    gas = (mean < _GAS_HU) | ((mean < _EVEN_GAS_HU) & (spread < _EVEN_HU))
    inner = erode(air, 1) > 0  # walls are no vessels
    highest = _around(np.where(inner, mean, np.int16(-2000)), cv2.dilate)
    lowest = _around(np.where(inner, mean, np.int16(2000)), cv2.erode)
    return np.asarray((air > 0) & gas | inner & (highest - lowest < _VESSEL_HU))


def _in_pairs(cells: npt.NDArray[np.generic], combine: Callable[..., Any]) -> Any:
    """Combine the eight cells of each block of twice the size; an odd last cell is left out."""
    z, y, x = (n // 2 * 2 for n in cells.shape)
    cells = combine(cells[:z:2], cells[1:z:2])
    cells = combine(cells[:, :y:2], cells[:, 1:y:2])
    return combine(cells[:, :, :x:2], cells[:, :, 1:x:2])


def _around(blocks: HuArray, extreme: Callable[..., Any]) -> HuArray:
    """Return the ``extreme``, of OpenCV, of the blocks within 20 mm along each axis."""
    (z, y, x), n = blocks.shape, _SMOOTH_BLOCKS
    # slices below each other are one image: rows of two mix at the edge of the field of view alone
    for shape, window in (((z * y, x), (n, n)), ((z, y * x), (n, 1))):
        blocks = extreme(blocks.reshape(shape), np.ones(window, np.uint8))
    return blocks.reshape(z, y, x)
