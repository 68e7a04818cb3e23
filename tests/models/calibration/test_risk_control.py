import numpy as np
import pytest
from scipy.stats import binom, binomtest

from models.calibration.risk_control import (
    Bound,
    ScoredNodules,
    ThresholdPath,
    binomial_cdf,
    control,
    counted,
    fewest_patients,
    furthest,
    losses,
    p_value,
    p_value_of,
    quantile_path,
    straight_path,
    upper_bound,
    upper_bound_of,
)

REPORT = 0.95
BY_MEAN = [Bound.BINOMIAL, Bound.HOEFFDING_BENTKUS]
"""The bounds that need no more than the mean of the losses."""


def nodules(patients: int, rng: np.random.Generator, missed: float = 0.005) -> ScoredNodules:
    """Patients with one to four nodules, whose scores resemble each other."""
    owner = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    own = rng.normal(0, 0.7, patients)[owner]
    edge, cloud = (1 / (1 + np.exp(-(2.5 + own + rng.normal(0, 1, owner.size)))) for _ in range(2))
    edge[rng.random(owner.size) < missed] = -np.inf
    return ScoredNodules(edge, cloud, owner)


def test_losses_by_hand() -> None:
    edge = np.array([-np.inf, 0.1, 0.5, 0.5, 0.99])
    merged = np.array([0.9, 0.9, 0.2, 0.9, 0.0])
    given = ScoredNodules(edge, merged, np.array(["a", "a", "b", "b", "c"]))
    path = ThresholdPath(np.array([0.0, 0.0, 0.3]), np.array([0.0, 0.4, 0.4]))
    np.testing.assert_array_equal(
        losses(given, path, REPORT), [[0.5, 0.5, 1.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    )


@pytest.mark.parametrize("bound", BY_MEAN)
def test_the_guarantee_holds_as_often_as_stated(bound: Bound) -> None:
    """Of 1,000 calibration sets drawn from a population, 90 % and more keep alpha on it."""
    rng = np.random.default_rng(1)
    population = counted(losses(nodules(4000, rng), straight_path(steps=150), REPORT), bound)
    true = population.mean(0)
    n, alpha, delta = 250, 0.06, 0.1
    drawn = rng.integers(0, len(population), (1000, n))
    weight = np.apply_along_axis(np.bincount, 1, drawn, minlength=len(population))
    step = furthest(weight @ population / n, n, alpha, delta, bound)
    assert (step >= 0).mean() > 0.9  # most sets guarantee something
    kept = (step < 0) | (true[step] <= alpha)
    assert kept.mean() >= 1 - delta
    assert true[step].max() > alpha  # it is a guarantee of 90 %, not one that never fails


def test_the_betting_bound_holds_as_often_as_stated_and_is_the_tightest() -> None:
    """Of 300 sets of 115 patients, some of whom lose a part of their nodules."""
    rng = np.random.default_rng(7)
    true, kept, narrow = 0.03, 0, 0
    for _ in range(300):
        shares = np.where(rng.random(115) < 0.08, rng.choice([0.25, 0.5], 115), 0.0)
        limit = upper_bound_of(shares, 0.1, Bound.BETTING)
        kept += limit >= true
        others = [upper_bound_of(shares, 0.1, bound) for bound in BY_MEAN]
        narrow += limit < min(others)
        assert p_value_of(shares, limit + 1e-6, 0.1, Bound.BETTING) <= 0.1
    assert kept >= 270
    assert narrow > 250


def test_the_betting_bound_of_one_loss_by_hand() -> None:
    """The first stake is sqrt(2 log(10) / (2 / 4)), which is cut to 1; the second is cut too."""
    assert p_value_of(np.zeros(2), 0.5, 0.1, Bound.BETTING) == pytest.approx(1 / 1.5**2)
    assert p_value_of(np.ones(2), 0.5, 0.1, Bound.BETTING) == 1.0


def test_one_more_step_would_not_hold() -> None:
    given, path = nodules(400, np.random.default_rng(2)), straight_path()
    found = control(given, path, report=REPORT, alpha=0.05)
    step = int(np.searchsorted(path.possible, found.possible))
    assert found.guarantee.holds
    assert found.guarantee.text == (
        "with 90 % confidence at most 5 % of nodules are missed, on average over patients "
        f"({len(given)} nodules of 400 patients, calibration {given.identity})"
    )
    assert 0 < step < path.possible.size - 1
    assert found.alpha_reached <= 0.05
    assert found.delta_reached <= 0.1
    mean = losses(given, path, REPORT).mean(0)
    assert furthest(mean[step : step + 2], 400, 0.05, 0.1, Bound.HOEFFDING_BENTKUS) == 0


def test_too_few_patients_say_so_with_the_tightest_pair() -> None:
    """62 patients without a miss guarantee 3.65 % at 90 %, and 2.8 % at 82.8 %."""
    owner = np.arange(62)
    given = ScoredNodules(np.full(62, 0.9), np.full(62, 0.9), owner)
    found = control(given, straight_path(), report=REPORT)
    assert not found.guarantee.holds
    assert (found.dismiss, found.possible) == (0.0, 0.0)
    assert found.alpha_reached == pytest.approx(1 - 0.1 ** (1 / 62))
    assert found.delta_reached == pytest.approx((1 - 0.028) ** 62)
    assert found.guarantee.text == (
        "no guarantee: at most 2.8 % missed cannot be guaranteed with 90 % confidence, "
        "62 patients are too few, 82 without a miss are needed; possible: 3.65 % with 90 %, or "
        "2.8 % with 82.8 %"
    )
    tightest = control(given, straight_path(), report=REPORT, alpha=found.alpha_reached + 1e-9)
    assert tightest.guarantee.holds


def test_nodules_never_proposed_are_lost_whatever_the_thresholds() -> None:
    """Enough patients, and still no guarantee: the most cautious thresholds lose 10 %."""
    given = nodules(500, np.random.default_rng(3), missed=0.1)
    found = control(given, straight_path(), report=REPORT)
    assert not found.guarantee.holds
    assert "lose too much at the most cautious thresholds" in found.guarantee.text
    assert found.guarantee.text.endswith("and 2.8 % not even with 50 %")


def test_the_exact_bound_counts_patients_who_lose_anything() -> None:
    shares = np.array([[0.5], [0.0]])
    assert counted(shares, Bound.BINOMIAL).tolist() == [[1.0], [0.0]]
    assert counted(shares, Bound.HOEFFDING_BENTKUS).tolist() == [[0.5], [0.0]]


def test_a_path_of_quantiles_comes_of_other_nodules() -> None:
    """It begins at 0, ends at the best scores, and never falls."""
    path = quantile_path(nodules(100, np.random.default_rng(4)))
    assert (path.dismiss[0], path.possible[0]) == (0.0, 0.0)
    assert path.possible[-1] > 0.99
    with pytest.raises(ValueError, match="proposed"):
        quantile_path(ScoredNodules(np.full(2, -np.inf), np.zeros(2), np.arange(2)))


def test_calibration_sets_are_distinguished() -> None:
    """Another score or patient is another calibration; another order or engine is the same."""
    one = nodules(10, np.random.default_rng(5))
    moved = ScoredNodules(one.edge, one.merged + 1e-3, one.patient)
    owned = ScoredNodules(one.edge, one.merged, one.patient + 1)
    assert len({one.identity, moved.identity, owned.identity}) == 3
    turned = ScoredNodules(one.edge[::-1], one.merged[::-1] + 1e-9, one.patient[::-1])
    assert turned.identity == one.identity


def test_what_cannot_be_is_refused() -> None:
    """A path that turns back, unequal shapes, NaN, and levels outside (0, 1)."""
    with pytest.raises(ValueError, match="falls"):
        ThresholdPath(np.array([0.0, 0.2, 0.1]), np.array([0.0, 0.1, 0.2]))
    with pytest.raises(ValueError, match="shapes"):
        ScoredNodules(np.zeros(2), np.zeros(3), np.arange(2))
    with pytest.raises(ValueError, match="NaN"):
        ScoredNodules(np.array([np.nan]), np.zeros(1), np.arange(1))
    with pytest.raises(ValueError, match=r"expected values in \(0, 1\)"):
        control(nodules(9, np.random.default_rng(6)), straight_path(), report=REPORT, alpha=1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 62), (1, 129), (3, 200), (7, 30), (129, 129)])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.3])
def test_the_exact_bound_is_that_of_clopper_and_pearson(k: int, n: int, delta: float) -> None:
    interval = binomtest(k, n, alternative="less").proportion_ci(1 - delta, method="exact")
    assert upper_bound(k / n, n, delta, Bound.BINOMIAL) == pytest.approx(interval.high, abs=1e-9)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (62, 0.028), (1000, 0.3), (400, 0.999)])
def test_binomial_tail_is_scipy_s(n: int, p: float) -> None:
    np.testing.assert_allclose(binomial_cdf(n, p), binom.cdf(np.arange(n + 1), n, p), atol=1e-12)


def mapie_p_value(mean: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The same as MAPIE has it; imported here, as it brings scikit-learn with it."""
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    return np.minimum(compute_hoeffding_bentkus_p_value(mean, n, alpha)[:, 0], 1.0)


@pytest.mark.parametrize("n", [1, 30, 62, 129, 400])
@pytest.mark.parametrize("alpha", [0.01, 0.028, 0.1, 0.3, 0.9])
def test_hoeffding_bentkus_is_mapie_s(n: int, alpha: float) -> None:
    whole = np.arange(n + 1) / n
    # where k / n * n is a little above k in floating point, MAPIE counts k + 1
    mean = np.concatenate([whole[whole * n == np.arange(n + 1)], (np.arange(n) + 0.3) / n])
    found = p_value(mean, n, alpha, Bound.HOEFFDING_BENTKUS)
    np.testing.assert_allclose(found, mapie_p_value(mean, n, alpha), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("mean", "n", "delta"), [(2 / 62, 62, 0.1), (0.043, 80, 0.05)])
def test_the_upper_bound_is_where_mapie_s_p_value_passes_delta(
    mean: float, n: int, delta: float
) -> None:
    limit = upper_bound(mean, n, delta, Bound.HOEFFDING_BENTKUS)
    assert mapie_p_value(np.array([mean]), n, limit + 1e-9) <= delta
    assert mapie_p_value(np.array([mean]), n, limit - 1e-9) > delta


@pytest.mark.parametrize("bound", BY_MEAN)
def test_no_loss_gives_the_rule_of_all_patients_sound(bound: Bound) -> None:
    """Without a loss the bound solves (1 - alpha)^n = delta, whichever it is."""
    assert upper_bound(0.0, 82, 0.1, bound) == pytest.approx(1 - 0.1 ** (1 / 82))
    assert fewest_patients(0.028, 0.1) == 82
    assert upper_bound(0.0, 82, 0.1, bound) <= 0.028 < upper_bound(0.0, 81, 0.1, bound)


@pytest.mark.parametrize(("n", "alpha"), [(0, 0.1), (10, 0.0), (10, 1.0), (10, float("nan"))])
def test_what_gives_no_p_value_is_refused(n: int, alpha: float) -> None:
    """No patients, or a level outside (0, 1)."""
    with pytest.raises(ValueError, match="p-value"):
        p_value(0.0, n, alpha, Bound.BINOMIAL)


def test_a_mean_is_not_enough_for_the_betting_bound() -> None:
    with pytest.raises(ValueError, match="mean alone"):
        p_value(0.1, 9, 0.5, Bound.BETTING)
