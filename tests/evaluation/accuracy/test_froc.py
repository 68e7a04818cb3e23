import numpy as np
import pytest

from evaluation.accuracy.froc import (
    Scored,
    false_positives_at,
    froc,
    match_scan,
    sensitivity_at,
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
    """Sensitivities and false positives are those of a threshold that there is."""
    curve = froc(FOUR)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.5, 1.5]
    rates = (0.125, 0.5, 1.0, 1.5, 8.0)
    assert sensitivity_at(curve, rates).tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert false_positives_at(curve, (0.25, 0.5, 0.75, 0.9)).tolist() == [0, 0.5, 1.5, np.inf]


@pytest.mark.parametrize(
    ("nodules", "false", "found", "false_at_all"),
    [([0.5], [0.5], [0.0, 1.0], 1.0), ([0.9, 0.1], [], [1.0, 1.0], 0.0),
     ([-np.inf], [0.9], [0.0, 0.0], np.inf)],
    ids=["a tied pair is taken together", "without false positives", "nothing is found"],
)  # fmt: skip
def test_ends_of_a_curve(
    nodules: list[float], false: list[float], found: list[float], false_at_all: float
) -> None:
    curve = froc(make(nodules, false, [0] * len(false), 1))
    assert sensitivity_at(curve, (0.5, 1.0)).tolist() == found
    assert sensitivity_at(curve)[[0, -1]].tolist() == found
    assert false_positives_at(curve, (1.0,)).tolist() == [false_at_all]


def test_weights_count_nodules_and_scans_several_times() -> None:
    """A scan drawn twice pays twice for its false positives, one not drawn pays nothing."""
    weights = np.array([2.0, 0.0, 1.0, 1.0]), np.array([0.0, 2.0])
    curve = weighted_froc(FOUR, *weights)
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0, 0, 1, 1]


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to count"):
        weighted_froc(FOUR, np.zeros(4), np.ones(2))


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
    with pytest.raises(ValueError, match=r"score|scan"):
        make(nodules, false, scan, scans)


NONE = np.empty((0, 4))
NODULE = np.array([[0, 0, 0, 6.0]])


@pytest.mark.parametrize(
    ("points", "excluded", "score", "false", "double", "ignored"),
    [
        ([[0, 0, 0, 0.3], [1, 0, 0, 0.9], [0, 1, 0, 0.5], [50, 0, 0, 0.8]], NONE, 0.9, [0.8], 2, 0),
        ([[3.0, 0, 0, 0.9]], NONE, -np.inf, [0.9], 0, 0),
        ([[0, 0, 0, 0.9], [15.1, 0, 0, 0.8], [25.0, 0, 0, 0.7]],
         np.array([[0, 0, 0, 20.0], [20.0, 0, 0, -1.0]]), 0.9, [0.7], 0, 1),
        (NONE, NONE, -np.inf, [], 0, 0),
    ],
    ids=["the best of three hits", "half the diameter is outside", "excluded", "no candidates"],
)  # fmt: skip
def test_a_nodule_counts_once_at_its_highest_score(
    points: list[list[float]], excluded: np.ndarray, score: float, false: list[float],
    double: int, ignored: int,
) -> None:  # fmt: skip
    """A mark on nodule and excluded finding is a hit; unknown diameters reach 5 mm."""
    nodule_score, false_score, *counts = match_scan(np.array(points), NODULE, excluded)
    assert nodule_score.tolist() == [score]
    assert false_score.tolist() == false
    assert counts == [ignored, double]


def test_only_the_hundred_best_of_a_scan_count() -> None:
    score = np.linspace(1.0, 0.5, 101)
    points = np.stack([np.arange(101) * 10.0 + 100, np.zeros(101), np.zeros(101), score], axis=1)
    points[100, 0] = 0
    nodule_score, false_score, *_ = match_scan(points, NODULE, NONE)
    assert nodule_score.tolist() == [-np.inf]
    assert false_score.size == 100
