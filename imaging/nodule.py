"""A nodule whose place is known: what a reader marked, or what the phantom drew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.volume import FloatArray, Triple


@dataclass(frozen=True)
class Nodule:
    """Ground truth: centre ``(x, y, z)`` LPS mm and diameter in mm; ``kind`` in a word or two."""

    centre_mm: Triple
    diameter_mm: float
    kind: str = ""

    def hit_by(self, point_mm: Triple | FloatArray) -> bool:
        """Whether a mark at ``point_mm`` counts as this nodule: nearer than half its diameter.

        The rule of LUNA16 (Setio et al., Medical Image Analysis 42:1-13, 2017).
        """
        distance = float(np.linalg.norm(np.asarray(point_mm) - np.asarray(self.centre_mm)))
        return distance < self.diameter_mm / 2
