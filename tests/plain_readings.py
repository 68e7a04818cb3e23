"""Readings for tests that care about probability and diameter only."""

import numpy as np
import numpy.typing as npt

from models.runtime.second_reader import Readings


def plain(probability: npt.ArrayLike, diameter_mm: npt.ArrayLike, side: int = 4) -> Readings:
    """``(n,)`` of each; nothing suspicious, solid, and no voxel outlined."""
    chance = np.asarray(probability, np.float64)
    count = len(chance)
    return Readings(
        probability=chance,
        diameter_mm=np.asarray(diameter_mm, np.float64),
        malignancy=np.zeros(count),
        texture=np.full(count, 2),
        mask=np.zeros((count, side, side, side), bool),
    )
