"""Tell which candidates lie at lung tissue, and not in bowel, heart or mediastinum.

The lung region is generous: it reaches into bowel and heart. A nodule has lung tissue at its
surface, however large it is. Gas in bowel and stomach is emptier than lung.
"""

import numpy as np
import numpy.typing as npt

from imaging.lungs import Lungs
from imaging.morphology import erode, opened
from imaging.volume import FloatArray, Triple

REACH_MM = 10.0
"""Distance from a candidate's surface to lung tissue. At all 27 marked nodules and lesions of 17
scans it is at most 3.6 mm, at 845 nodules in cubes of 50 mm at most 4.4 mm."""
_TISSUE_HU = (-965, -500)
_GAS_HU = -970
_GAS_CELLS = 1.5
"""Radius in cells of 6 mm: a ball that fits into a bowel, not into most airways."""
_CLOSER_MM = 4.0
"""Gas that is nearer than lung tissue by more than this is not that of the lung. At the same
nodules, emphysema included, tissue is nearer than gas by 14 mm and more."""


def at_lung(
    lungs: Lungs, spacing_mm: Triple, index_zyx: FloatArray, diameter_mm: FloatArray
) -> npt.NDArray[np.bool_]:
    """Tell which candidates have lung tissue near their surface, bool ``(n,)``.

    ``index_zyx`` ``(n, 3)`` are voxels of the volume, of ``spacing_mm``.
    """
    low, high = _TISSUE_HU
    tissue = lungs.air & ((lungs.hu > low) & (lungs.hu < high)).astype(np.uint8)
    inner = tissue & erode(lungs.air, 1)  # at its surface gas and wall mix in one cell
    gas = opened((lungs.hu < _GAS_HU).astype(np.uint8), _GAS_CELLS)
    masks = inner, opened(tissue, 1), gas
    cell_mm = np.asarray(lungs.shape) * spacing_mm / lungs.air.shape
    near = np.zeros(len(index_zyx), dtype=bool)
    for n, (index, diameter) in enumerate(zip(index_zyx, diameter_mm, strict=True)):
        at, reach = (index + 0.5) * spacing_mm / cell_mm, diameter / 2 + REACH_MM
        # the cells within reach, and their distance
        first = np.maximum(np.floor(at - reach / cell_mm).astype(int), 0)
        last = np.ceil(at + reach / cell_mm).astype(int)
        parts = [mask[tuple(map(slice, first, last))] > 0 for mask in masks]
        steps = np.moveaxis(np.indices(parts[0].shape), 0, -1) + first + 0.5 - at
        far = np.linalg.norm(steps * cell_mm, axis=-1)
        to_inner, to_tissue, to_gas = (far[part].min(initial=np.inf) for part in parts)
        near[n] = to_inner <= reach and to_tissue <= to_gas + _CLOSER_MM
    return near
