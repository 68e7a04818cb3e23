import numpy as np
import pytest

from models.distillation.scores import Scores, figures, points_gained

PATIENTS = np.array([0, 0, 1, 2, 3, 3])


def student(shift: float) -> Scores:
    """Three of six nodules rank above every false positive; ``shift`` lifts the others."""
    nodules = np.array([5.0, 5, 5, shift, shift, shift])
    return Scores(nodules, np.array([1.0, 2, 3, 4]))


def test_figures_are_of_equal_context() -> None:
    found = figures(student(0.0), scans=1)
    assert [found[f"at_{rate}"] for rate in (1, 2, 4)] == [0.5, 0.5, 1.0]
    assert found["cpm"] == pytest.approx((5 * 0.5 + 2) / 7)


def test_the_same_student_gains_nothing() -> None:
    gained = points_gained([student(0.0)] * 3, [student(0.0)] * 3, PATIENTS, 1, resamples=20)
    assert all(g == {"points": 0.0, "low": 0.0, "high": 0.0} for g in gained.values())


def test_a_better_student_gains_and_the_interval_holds_the_gain() -> None:
    better = [student(5.0), student(5.0), student(0.0)]
    gained = points_gained(better, [student(0.0)] * 3, PATIENTS, 1, resamples=200)
    assert gained["at_1"]["points"] == pytest.approx(100 * 0.5 * 2 / 3)
    assert 0 <= gained["at_1"]["low"] < gained["at_1"]["points"] < gained["at_1"]["high"] <= 100
