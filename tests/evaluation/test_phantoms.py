"""Synthetic chests as an evaluation set."""

from __future__ import annotations

from evaluation.phantoms import split_truth
from evaluation.truth import Lesion
from imaging.nodule import Nodule


def test_nodules_of_five_millimetres_count() -> None:
    """Smaller ones are put aside, with the reach of a small finding."""
    large = Nodule((1.0, 2.0, 3.0), 5.0, "solid")
    small = Nodule((9.0, 9.0, 9.0), 4.9, "solid")
    counted, ignored = split_truth([large, small])
    assert counted == (Lesion((1.0, 2.0, 3.0), 5.0),)
    assert ignored == (Lesion((9.0, 9.0, 9.0), 10.0),)
