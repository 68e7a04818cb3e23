"""Where lung tissue is, to tell findings in bowel, heart, mediastinum and windpipe.

The product's lung region is generous. Here lung is its air of the density of tissue, without small
airways, in slices that show more than a windpipe, in pieces as large as a lung.
"""

import numpy as np

from imaging.lungs import labelled
from imaging.morphology import opened
from imaging.preprocess import Preprocessed
from imaging.volume import FloatArray

_TISSUE_HU = (-965, -500)
_AIRWAY_CELLS = 1.5
_WINDPIPE_CELLS = 38
"""Slices with less air, 600 mm2, may show the windpipe alone."""
_MIN_SHARE = 0.2
"""Of the largest piece. The product takes 90 ml of bowel in a shared scan for a piece of lung."""


def lung_points_mm(box: Preprocessed) -> FloatArray:
    """Return a point in each cell of 4 mm of lung tissue, LPS mm ``(n, 3)``."""
    if (lungs := box.lungs) is None or box.source is None:
        return np.zeros((0, 3))
    tissue = (lungs.air > 0) & (lungs.hu > _TISSUE_HU[0]) & (lungs.hu < _TISSUE_HU[1])
    tissue &= (lungs.air.sum((1, 2)) >= _WINDPIPE_CELLS)[:, None, None]
    pieces = labelled(opened(tissue.astype(np.uint8), _AIRWAY_CELLS))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0  # label 0 is the background
    cells = np.argwhere((sizes >= _MIN_SHARE * sizes.max(initial=1))[pieces]) + 0.5
    return box.source.to_world(cells * lungs.shape / lungs.air.shape - 0.5)
