"""What the marks on one scan are worth."""

from __future__ import annotations

import numpy as np

from evaluation.scan import score_scan
from evaluation.truth import Lesion

LESION = Lesion((0.0, 0.0, 0.0), 20.0)


def test_marks_are_sorted_into_hits_rim_and_false() -> None:
    """The best hit scores for the lesion, the rim counts neither way, the rest is false."""
    marks = [
        ((9.0, 0.0, 0.0), 0.6),
        ((0.0, 9.0, 0.0), 0.7),
        ((12.0, 0.0, 0.0), 0.99),
        ((13.5, 0.0, 0.0), 0.5),
        ((99.0, 0.0, 0.0), 0.2),
    ]
    scores = score_scan("a", marks, (LESION,))
    assert scores.lesion_score.tolist() == [0.7]
    assert scores.false_score.tolist() == [0.5, 0.2]
    assert [scores.false_above(t) for t in (0.5, 0.51, 0.0)] == [1, 0, 2]


def test_without_rim_a_near_miss_is_false() -> None:
    """Where truth is exact there is no rim."""
    scores = score_scan("a", [((12.0, 0.0, 0.0), 0.9)], (LESION,), rim_mm=0.0)
    assert scores.lesion_score.tolist() == [-np.inf]
    assert scores.false_score.tolist() == [0.9]


def test_marks_on_what_is_ignored_count_neither_way() -> None:
    """A mark on an ignored place is no hit and not false."""
    scores = score_scan("a", [((1.0, 0.0, 0.0), 0.9)], (), (LESION,))
    assert scores.lesion_score.size == scores.false_score.size == 0
