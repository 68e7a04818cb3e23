"""Reliability and calibration error by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.calibration import (
    at_prior,
    brier,
    class_weights,
    ece_interval,
    log_loss,
    reliability,
)


def test_classes_weigh_the_prior() -> None:
    """Whatever their number, nodules weigh the prior together; a draw may leave some out."""
    nodule = np.array([True, False, False, False])
    weight = class_weights(nodule, 0.5)
    assert weight.tolist() == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6])
    drawn = class_weights(nodule, 0.25, np.array([2.0, 0, 1, 1]))
    assert drawn.tolist() == pytest.approx([0.25, 0, 0.375, 0.375])
    with pytest.raises(ValueError, match="both are needed"):
        class_weights(np.array([False, False]), 0.5)


def test_bins_hold_equal_mass() -> None:
    """Four candidates in two bins: .1 and .3 hold no nodule, .6 and .8 one of two."""
    score = np.array([0.8, 0.1, 0.6, 0.3])
    nodule = np.array([True, False, False, False])
    found = reliability(score, nodule, np.full(4, 0.25), bins=2)
    assert found.score.tolist() == pytest.approx([0.2, 0.7])
    assert found.share.tolist() == pytest.approx([0.0, 0.5])
    assert found.mass.tolist() == [0.5, 0.5]
    assert found.ece == pytest.approx(0.2)


def test_true_probabilities_have_little_error() -> None:
    """Scores that are probabilities have an error near 0; the same scores squared have not."""
    rng = np.random.default_rng(0)
    score = rng.uniform(size=20000)
    nodule = rng.uniform(size=20000) < score
    even = np.full(20000, 1 / 20000)
    assert reliability(score, nodule, even).ece < 0.02
    assert reliability(score**2, nodule, even).ece == pytest.approx(1 / 6, abs=0.02)


def test_interval_is_drawn_over_groups() -> None:
    """Candidates that all belong to one of few patients make a wider interval."""
    rng = np.random.default_rng(0)
    score = rng.uniform(size=400)
    nodule = rng.uniform(size=400) < score
    each = np.array([f"p{i}" for i in range(400)])
    few = np.array([f"p{int(10 * s)}" for s in score])
    widths = []
    for group in (each, few):
        found = ece_interval(score, nodule, group, 0.5, resamples=100, seed=0)
        assert found.low <= found.high
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def test_losses_by_hand() -> None:
    """-ln .8 and -ln .5, and their squares' distance."""
    score, nodule, weight = np.array([0.8, 0.5]), np.array([True, False]), np.array([0.5, 0.5])
    assert log_loss(score, nodule, weight) == pytest.approx((0.2231 + 0.6931) / 2, abs=1e-3)
    assert brier(score, nodule, weight) == pytest.approx((0.04 + 0.25) / 2)


def test_another_prior_multiplies_the_odds() -> None:
    """Even odds at a prior of 1/2 are odds of 1 to 3 at 1/4, and back."""
    shifted = at_prior(np.array([0.5, 0.75]), 0.25)
    assert shifted.tolist() == pytest.approx([0.25, 0.5])
    assert at_prior(shifted, 0.5, 0.25).tolist() == pytest.approx([0.5, 0.75])
