"""Measure how much of the lungs is not aerated: ground glass and consolidation in compact patches.

Vessels, walls of airways and nodules are too thin to count. Consolidation counts where lung lies
above and below it. One that reaches the diaphragm or fills a whole lobe shows in the air that one
lung has less than the other.
"""

import numpy as np

from imaging.lungs import CELL_MM, Lungs, spine_of
from imaging.morphology import closed_along_z, erode, opened

_HAZY_HU = -700
"""Above it a cell well inside the lungs holds ground glass, or air and tissue in one cell."""
_TISSUE_HU = -320
_GAP_MM = 72.0
_PATCH_MM = 10.0
"""Radius of a ball that fits into a consolidation, not between the vessels of a hilum."""
_TRACHEA_CELLS = 38
"""Slices with less air hold no lung, only trachea: 600 mm2."""


def opaque_share(lungs: Lungs) -> float:
    """Return the part of the lungs that is ground glass or consolidation, from 0 to 1."""
    inner = erode(lungs.air, 1)
    hazy = opened(inner & (lungs.hu > _HAZY_HU).astype(np.uint8), 1)
    # tissue between lung above and lung below, in the slices of the lungs
    lung = lungs.air * (lungs.air.sum(axis=(1, 2)) >= _TRACHEA_CELLS)[:, None, None]
    lung = lung.astype(np.uint8)
    tissue = (1 - lung) & (lungs.hu > _TISSUE_HU).astype(np.uint8)
    between = closed_along_z(lung, int(_GAP_MM / CELL_MM)) & tissue
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
