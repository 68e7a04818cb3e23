"""Tell lung tissue from gas and from disease: candidates at it, and the air that is lost.

The lung region also reaches into bowel and heart. A nodule has lung tissue at its surface, however
large it is; gas in bowel and stomach is emptier than lung (`at_lung`).

Not aerated are ground glass and consolidation in compact patches. Vessels, walls of airways and
nodules are too thin to count. Consolidation counts where lung lies above and below it. One that
reaches the diaphragm or fills a whole lobe shows in the air that one lung has less than the other.
"""

import numpy as np
import numpy.typing as npt

from imaging.lungs import CELL_MM, GAP_MM, Lungs, spine_of
from imaging.morphology import closed_along_z, erode, opened
from imaging.volume import FloatArray, Triple

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
_DENSE_HU = -320
_PATCH_MM = 10.0
"""Radius of a ball that fits into a consolidation, not between the vessels of a hilum."""
_TRACHEA_CELLS = 38
"""Slices with less air hold no lung, only trachea: 600 mm2."""


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


def smaller_share(lungs: Lungs) -> float:
    """Return the air of the smaller lung as a part of that of the larger one, from 0 to 1.

    The spine parts them. Whole lungs lie above 0.6, also with a mass of 36 mm.
    """
    middle = spine_of(lungs.air, lungs.hu)
    sides = [float(side.sum()) for side in (lungs.air[:, :, :middle], lungs.air[:, :, middle:])]
    return min(sides) / max(*sides, 1.0)
