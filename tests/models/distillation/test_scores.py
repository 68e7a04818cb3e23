import numpy as np
import pytest

from models.distillation.scores import Scores, figures, points_gained

PATIENTS = np.array([0, 0, 1, 2, 3, 3])


def reader(shift: float) -> Scores:
    """Three of six nodules rank above every false positive; ``shift`` lifts the others."""
    nodules = np.array([5.0, 5, 5, shift, shift, shift])
    return Scores(nodules, np.array([1.0, 2, 3, 4]), np.array([-1.0, -2]))


def test_sensitivity_follows_the_false_positives_of_scans() -> None:
    found = figures(reader(0.0), scans=1)
    assert [found[f"at_{r}"] for r in ("0.5", "1", "2")] == [0.5, 0.5, 0.5]
    assert found["at_4"] == 1.0
    assert found["mean"] == pytest.approx(2.5 / 4)
    assert found["auc"] == pytest.approx(0.5 + 0.5 * 2 / 6)


def test_the_same_reader_gains_nothing() -> None:
    gained = points_gained([reader(0.0)] * 3, [reader(0.0)] * 3, PATIENTS, 1, resamples=20)
    assert all(g == {"points": 0.0, "low": 0.0, "high": 0.0} for g in gained.values())


def test_a_better_reader_gains_and_the_interval_holds_the_gain() -> None:
    better = [reader(5.0), reader(5.0), reader(0.0)]
    gained = points_gained(better, [reader(0.0)] * 3, PATIENTS, 1, resamples=200)
    assert gained["at_1"]["points"] == pytest.approx(100 * 0.5 * 2 / 3)
    assert 0 <= gained["at_1"]["low"] < gained["at_1"]["points"] < gained["at_1"]["high"] <= 100
