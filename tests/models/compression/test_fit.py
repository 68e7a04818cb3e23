"""Fitting calibration, merger and thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from models.compression.fit import Cases, logistic, thresholds


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    """On balanced data drawn from known weights they come back."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.5 * x[:, 1])))
    np.testing.assert_allclose(logistic(x, truth, ridge=0), [0, 1.5, -0.5], atol=0.06)


def test_separable_data_gives_finite_weights() -> None:
    """Where a line parts the classes the ridge keeps the weights finite."""
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    assert np.isfinite(logistic(x, np.array([False, False, True, True]))).all()


def test_thresholds_leave_the_alarms_they_promise() -> None:
    """``final`` lets one alarm a scan through, ``dismiss`` keeps every proposed nodule."""
    rng = np.random.default_rng(0)
    edge = np.concatenate([rng.beta(8, 2, 200), rng.beta(2, 8, 100)])
    nodule = np.arange(300) < 200
    cases = Cases(edge, edge, nodule, 0, scans=4)
    found = thresholds(edge, edge, cases)
    assert (edge[~nodule] >= found["final"]).sum() == 4
    assert found["dismiss"] == pytest.approx(0.5 * edge[nodule].min(), abs=1e-6)
    assert (edge[~nodule] > found["report"]).sum() == 0
    assert found["dismiss"] <= found["alone"] <= found["report"]
