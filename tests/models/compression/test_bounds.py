"""Bounds on a risk, against scipy, MAPIE and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from models.compression.bounds import Bound, binomial_cdf, fewest_patients, p_value, upper_bound


@pytest.mark.parametrize(("k", "n"), [(0, 62), (1, 129), (3, 200), (7, 30), (129, 129)])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.3])
def test_the_exact_bound_is_that_of_clopper_and_pearson(k: int, n: int, delta: float) -> None:
    """The one-sided exact interval of scipy ends where ours does."""
    interval = binomtest(k, n, alternative="less").proportion_ci(1 - delta, method="exact")
    assert upper_bound(k / n, n, delta, Bound.BINOMIAL) == pytest.approx(interval.high, abs=1e-9)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (62, 0.028), (1000, 0.3), (400, 0.999)])
def test_binomial_tail_is_scipy_s(n: int, p: float) -> None:
    """Every P(X <= k), also far out in the tail."""
    np.testing.assert_allclose(binomial_cdf(n, p), binom.cdf(np.arange(n + 1), n, p), atol=1e-12)


def mapie_p_value(mean: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The same as MAPIE has it; imported here, as it brings scikit-learn with it."""
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    return np.minimum(compute_hoeffding_bentkus_p_value(mean, n, alpha)[:, 0], 1.0)


@pytest.mark.parametrize("n", [1, 30, 62, 129, 400])
@pytest.mark.parametrize("alpha", [0.01, 0.028, 0.1, 0.3, 0.9])
def test_hoeffding_bentkus_is_mapie_s(n: int, alpha: float) -> None:
    """For whole and fractional losses, from none to all."""
    whole = np.arange(n + 1) / n
    # where k / n * n is a little above k in floating point, MAPIE counts k + 1
    mean = np.concatenate([whole[whole * n == np.arange(n + 1)], (np.arange(n) + 0.3) / n])
    found = p_value(mean, n, alpha, Bound.HOEFFDING_BENTKUS)
    np.testing.assert_allclose(found, mapie_p_value(mean, n, alpha), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("mean", "n", "delta"), [(2 / 62, 62, 0.1), (0.043, 80, 0.05)])
def test_the_upper_bound_is_where_mapie_s_p_value_passes_delta(
    mean: float, n: int, delta: float
) -> None:
    """A little above it the level is rejected, a little below it is not."""
    limit = upper_bound(mean, n, delta, Bound.HOEFFDING_BENTKUS)
    assert mapie_p_value(np.array([mean]), n, limit + 1e-9) <= delta
    assert mapie_p_value(np.array([mean]), n, limit - 1e-9) > delta


@pytest.mark.parametrize("bound", list(Bound))
def test_no_loss_gives_the_rule_of_all_patients_sound(bound: Bound) -> None:
    """Without a loss the bound solves (1 - alpha)^n = delta, whichever it is."""
    assert upper_bound(0.0, 82, 0.1, bound) == pytest.approx(1 - 0.1 ** (1 / 82))
    assert fewest_patients(0.028, 0.1) == 82
    assert upper_bound(0.0, 82, 0.1, bound) <= 0.028 < upper_bound(0.0, 81, 0.1, bound)


@pytest.mark.parametrize("bound", list(Bound))
def test_a_mean_above_alpha_is_no_evidence(bound: Bound) -> None:
    """The p-value falls with the loss, and is large where the loss itself exceeds alpha."""
    p = p_value(np.array([0.0, 0.02, 0.05, 0.2]), 100, 0.05, bound)
    assert (np.diff(p) >= 0).all()
    assert p[-1] > 0.9
    assert p[0] < 0.01


def test_the_p_value_errs_as_seldom_as_it_says() -> None:
    """At a risk just above alpha, fractional losses are rejected in less than delta of samples."""
    rng = np.random.default_rng(0)
    loss = (rng.random((20_000, 90)) < 0.12) * rng.choice([0.5, 1.0], (20_000, 90))
    p = p_value(loss.mean(1), 90, 0.09, Bound.HOEFFDING_BENTKUS)
    assert (p <= 0.1).mean() <= 0.1


@pytest.mark.parametrize(("n", "alpha"), [(0, 0.1), (10, 0.0), (10, 1.0), (10, float("nan"))])
def test_what_gives_no_p_value_is_refused(n: int, alpha: float) -> None:
    """No patients, or a level outside (0, 1)."""
    with pytest.raises(ValueError, match="p-value"):
        p_value(0.0, n, alpha, Bound.BINOMIAL)
