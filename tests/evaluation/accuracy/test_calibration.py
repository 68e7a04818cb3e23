import numpy as np
import pytest

from evaluation.accuracy.calibration import (
    METHODS,
    BoolArray,
    at_prior,
    brier,
    class_weights,
    cross_validated,
    ece_interval,
    fit_isotonic,
    fit_sigmoid,
    log_loss,
    reliability,
)
from imaging.volume import FloatArray


def test_classes_weigh_the_prior() -> None:
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


def sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-x)))


def made(slope: float, intercept: float, n: int = 4000) -> tuple[FloatArray, BoolArray]:
    """Logits whose truth is drawn with sigmoid(slope x + intercept)."""
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 2, n)
    return logit, rng.uniform(size=n) < sigmoid(slope * logit + intercept)


def test_the_temperature_is_found_again() -> None:
    logit, nodule = made(1.0, 0.0)
    chance = fit_sigmoid(3 * logit, nodule, intercept=False)(np.array([3.0]))
    assert chance[0] == pytest.approx(sigmoid(np.array(1.0)), abs=0.03)


def test_platt_finds_slope_and_even_prior() -> None:
    """The slope is found; the intercept is that at which both classes weigh the same."""
    logit, nodule = made(1.5, -1.0)
    low, high = fit_sigmoid(logit, nodule, intercept=True)(np.array([0.0, 2.0]))
    slope = np.log(high / (1 - high) * (1 - low) / low) / 2
    assert slope == pytest.approx(1.5, abs=0.15)
    assert low > sigmoid(np.array(-1.0))  # nodules were the rarer class


def test_falling_neighbours_are_pooled() -> None:
    """False, nodule, false, nodule: the falling pair becomes one step, by weight; the ends stay."""
    logit, nodule = np.arange(4.0), np.array([False, True, False, True])
    assert fit_isotonic(logit, nodule)(logit) == pytest.approx([0.25, 0.5, 0.5, 0.75])
    logit, nodule = np.arange(5.0), np.array([False, True, False, False, True])
    assert fit_isotonic(logit, nodule)(logit)[1:4] == pytest.approx(3 / 7)


@pytest.mark.parametrize("method", list(METHODS))
def test_methods_rise_and_stay_inside_and_mend_what_is_too_steep(method: str) -> None:
    logit, nodule = made(1.0, 0.0, 300)
    chance = METHODS[method](logit, nodule)(np.linspace(-20, 20, 50))
    assert (np.diff(chance) >= -1e-12).all()
    assert (chance > 0).all()
    assert (chance < 1).all()
    logit, nodule = made(1.0, 0.0, 2000)
    group = np.array([f"p{i % 100}" for i in range(2000)])
    weight = class_weights(nodule, 0.5)
    before = reliability(sigmoid(4 * logit), nodule, weight).ece
    mended = cross_validated(METHODS[method], 4 * logit, nodule, group, seed=0)
    assert reliability(mended, nodule, weight).ece < before / 2


def test_no_patient_is_fitted_on_itself() -> None:
    seen: list[set[float]] = []

    def spy(logit: FloatArray, nodule: BoolArray):  # type: ignore[no-untyped-def]  # a local spy
        del nodule
        learnt = set(logit.tolist())

        def apply(x: FloatArray) -> FloatArray:
            assert not learnt & set(x.tolist())
            seen.append(set(x.tolist()))
            return x

        return apply

    logit = np.repeat(np.arange(10.0), 3)
    group = np.repeat([f"p{i}" for i in range(10)], 3)
    nodule = np.arange(30) % 2 == 0
    assert cross_validated(spy, logit, nodule, group, seed=0).tolist() == logit.tolist()
    assert len(seen) == 5
