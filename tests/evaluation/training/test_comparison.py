"""Figures of trained networks, and intervals of their differences."""

import numpy as np
import pytest

from evaluation.training.comparison import cpm, gained, points, ranks


def test_figures_are_of_equal_context() -> None:
    """Three of six nodules rank above every false positive, the others below all."""
    found = ranks(np.array([5.0, 5, 5, 0, 0, 0]), np.array([1.0, 2, 3, 4]), 1)
    assert found == [7, 7, 7, 2, 2, 2]  # the latter at 4 and 8 false positives a scan
    assert cpm(np.array(found)) == pytest.approx((5 * 0.5 + 2) / 7)


def test_a_nodule_without_a_peak_is_found_at_no_rate() -> None:
    """Even if there are fewer false positives than the rate allows."""
    assert ranks(np.array([-np.inf, 0.0]), np.array([1.0]), 1) == [0, 4]
    assert gained(np.array([[7]]), np.array([[0]]), ["a"])["value"] == 100


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
    patients = ["a", "a", "b", "c", "d", "d"]
    better = np.array([[7] * 6, [7] * 6, [7, 7, 7, 2, 2, 2]])
    found = gained(better, better[2:], patients)
    assert found["value"] == pytest.approx(100 * 2 / 3 * 0.5 * 5 / 7)
    assert 0 <= found["low"] < found["value"] < found["high"] <= 100
    assert gained(better, better, patients)["value"] == 0
