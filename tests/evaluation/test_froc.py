"""The FROC curve, worked out by hand on a handful of marks."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.froc import (
    Scored,
    false_positives_at,
    froc,
    rank,
    sensitivity_at,
    threshold_at,
    threshold_within,
    weighted_froc,
)


def make(nodules: list[float], false: list[float], scan: list[int], scans: int) -> Scored:
    """Each nodule of a patient of its own."""
    group = np.arange(len(nodules))
    scan_of = np.array(scan, dtype=np.int64)
    return Scored(np.array(nodules), group, np.array(false, float), scan_of, scans, False)


# Two scans, four nodules. By falling score: N .9, F .8, N .7, F .6, F .6, N .5; one never found.
FOUR = make([0.9, 0.7, 0.5, -np.inf], [0.8, 0.6, 0.6], [0, 0, 1], 2)


def test_curve_lists_every_threshold() -> None:
    """Each distinct score is one point of the curve, from nothing marked to everything marked."""
    curve = froc(FOUR)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.5, 1.5]


def test_sensitivity_is_that_of_an_achievable_threshold() -> None:
    """Between two thresholds the lower sensitivity counts; beyond the last, the last."""
    curve = froc(FOUR)
    assert sensitivity_at(curve, (0.125, 0.5, 1.0, 1.5, 8.0)).tolist() == [
        0.25,
        0.5,
        0.5,
        0.75,
        0.75,
    ]
    assert threshold_within(curve, (0.125, 0.5, 8.0)).tolist() == [0.9, 0.7, 0.5]


def test_tied_nodule_and_false_positive_are_taken_together() -> None:
    """A nodule with the score of a false positive cannot be had without paying for that one."""
    curve = froc(make([0.5], [0.5], [0], 1))
    assert sensitivity_at(curve, (0.5, 1.0)).tolist() == [0.0, 1.0]


def test_false_positives_at_a_sensitivity() -> None:
    """The fewest false positives that reach a sensitivity, and inf where nothing reaches it."""
    curve = froc(FOUR)
    assert false_positives_at(curve, (0.25, 0.5, 0.75, 0.9)).tolist() == [0, 0.5, 1.5, np.inf]
    assert threshold_at(curve, (0.5, 0.9)).tolist() == [0.7, -np.inf]


def test_without_false_positives_everything_is_free() -> None:
    """A reader without a false positive has its full sensitivity at every rate."""
    curve = froc(make([0.9, 0.1], [], [], 3))
    assert sensitivity_at(curve).tolist() == [1.0] * 7
    assert false_positives_at(curve, (1.0,)).tolist() == [0.0]


def test_reader_that_finds_nothing() -> None:
    """A reader that never proposes a nodule has no sensitivity at any rate."""
    curve = froc(make([-np.inf], [0.9], [0], 1))
    assert sensitivity_at(curve).tolist() == [0.0] * 7


def test_weights_count_nodules_and_scans_several_times() -> None:
    """A scan drawn twice pays twice for its false positives, one not drawn pays nothing."""
    weights = np.array([2.0, 0.0, 1.0, 1.0]), np.array([0.0, 2.0])
    curve = weighted_froc(FOUR, rank(FOUR), *weights)
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0, 0, 1, 1]


def test_weights_of_nothing_are_refused() -> None:
    """A draw without any nodule has no sensitivity."""
    with pytest.raises(ValueError, match="nothing to count"):
        weighted_froc(FOUR, rank(FOUR), np.zeros(4), np.ones(2))


@pytest.mark.parametrize(
    ("nodules", "false", "scan", "scans"),
    [
        ([], [0.5], [0], 1),
        ([np.nan], [0.5], [0], 1),
        ([0.5], [np.inf], [0], 1),
        ([0.5], [0.5], [1], 1),
        ([0.5], [0.5], [0, 0], 1),
    ],
)
def test_scores_that_make_no_curve_are_refused(
    nodules: list[float], false: list[float], scan: list[int], scans: int
) -> None:
    """No nodule, a score that is no number, or a scan that is not counted is an error at once."""
    with pytest.raises(ValueError, match=r"score|scan"):
        make(nodules, false, scan, scans)
