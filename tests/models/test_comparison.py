"""Figures of trained networks, and intervals of their differences."""

import numpy as np
import pytest

from models.comparison import UNSEEN, Scores, figures, gained, points


def scores(found: list[float], false_positives: list[float]) -> Scores:
    return {"found": found, "false_positives": false_positives}


def test_figures_are_of_equal_context() -> None:
    """Three of six nodules rank above every false positive, the others below all."""
    found = figures(scores([5.0, 5, 5, 0, 0, 0], [1.0, 2, 3, 4]), scans=1)
    assert [found[f"at_{rate}"] for rate in (1, 2, 4)] == [0.5, 0.5, 1.0]
    assert found["cpm"] == pytest.approx((5 * 0.5 + 2) / 7)


def test_a_nodule_without_a_peak_is_found_at_no_rate() -> None:
    """Even if there are fewer false positives than the rate allows."""
    unseen, seen = scores([UNSEEN], [1.0]), scores([0.0], [1.0])
    assert figures(unseen, 1)["at_8"] == 0
    assert figures(seen, 1)["at_8"] == 1
    assert gained([seen], [unseen], ["a"], 1)["at_8"]["value"] == 100


def test_an_interval_is_by_patient() -> None:
    """The same two nodules of a hundred, of two patients or of one who has fifty."""
    lost = np.array([[1.0] * 2 + [0.0] * 98] * 3)
    each = points(lost, [str(n) for n in range(100)])
    few = points(lost, ["a"] * 50 + ["b"] * 50)
    assert each["value"] == few["value"] == pytest.approx(2.0)
    assert each["low"] < 2.0 < each["high"] < 7.0
    assert few["low"] == 0
    assert few["high"] == pytest.approx(4.0)


def test_an_interval_has_a_width_where_all_patients_are_alike() -> None:
    """None of ten patients loses anything: up to 30.8 % of patients could (Clopper-Pearson)."""
    found = points(np.zeros((3, 10)), [str(n) for n in range(10)])
    assert found == pytest.approx({"value": 0, "low": -30.85, "high": 30.85}, abs=0.01)


def test_seeds_that_differ_widen_the_interval() -> None:
    lost = np.array([[0.0] * 50, [1.0] * 50, [0.0] * 50])
    found = points(lost, [str(n) for n in range(50)])
    assert found["low"] == 0
    assert found["high"] == pytest.approx(100)


def test_a_better_student_gains_and_the_interval_holds_the_gain() -> None:
    """Three of six nodules rank above every false positive; ``shift`` lifts the others."""

    def student(shift: float) -> Scores:
        return {"found": [5.0, 5, 5, shift, shift, shift], "false_positives": [1.0, 2, 3, 4]}

    patients = ["a", "a", "b", "c", "d", "d"]
    better = [student(5.0), student(5.0), student(0.0)]
    found = gained(better, [student(0.0)] * 3, patients, 1)
    assert found["at_1"]["value"] == pytest.approx(100 * 0.5 * 2 / 3)
    assert 0 <= found["at_1"]["low"] < found["at_1"]["value"] < found["at_1"]["high"] <= 100
    assert gained(better, better, patients, 1)["cpm"]["value"] == 0
