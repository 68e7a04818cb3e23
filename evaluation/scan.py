"""What the marks on one whole scan are worth, given the lesions that are known of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from evaluation.truth import RIM_MM, Lesion
from imaging.volume import FloatArray, Triple

Mark = tuple[Triple, float]
"""A place ``(x, y, z)`` LPS mm and its score."""


@dataclass(frozen=True, eq=False)
class ScanScores:
    """One scan: scores of its false positives ``(m,)``, highest score on each known lesion.

    ``lesion_score`` ``(len(lesions),)`` is ``-inf`` where no mark hit the lesion.
    """

    name: str
    false_score: FloatArray
    lesions: tuple[Lesion, ...]
    lesion_score: FloatArray

    def false_above(self, threshold: float) -> int:
        """How many false positives score `threshold` or more."""
        return int((self.false_score >= threshold).sum())


def score_scan(
    name: str,
    marks: Iterable[Mark],
    lesions: tuple[Lesion, ...],
    ignored: tuple[Lesion, ...] = (),
    *,
    rim_mm: float = RIM_MM,
) -> ScanScores:
    """The marks of one scan, sorted into hits of `lesions` and false positives.

    A mark within a lesion's reach scores for it, the highest one counts. Within `rim_mm` outside
    it, and on what is `ignored`, a mark counts neither way. Every other mark is false.
    """
    found = list(marks)
    known = (*lesions, *ignored)
    false = [score for place, score in found if not any(x.covers(place, rim_mm) for x in known)]
    best = [
        max((score for place, score in found if lesion.hit_by(place)), default=-np.inf)
        for lesion in lesions
    ]
    return ScanScores(name, np.array(false, float), lesions, np.array(best, float))
