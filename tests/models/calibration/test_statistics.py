import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from models.calibration.statistics import (
    auc,
    logistic,
    p_value,
    per_patient,
    poisson_limit,
    upper_bound,
)


def test_without_positives_or_negatives_there_is_no_area() -> None:
    assert np.isnan(auc(np.array([1.0]), np.array([True])))
    assert np.isnan(auc(np.array([1.0]), np.array([False])))
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool)))


def test_auc_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.3
    score = np.round(rng.normal(truth, 1.0), 1)
    assert auc(score, truth) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.5 * x[:, 1])))
    np.testing.assert_allclose(logistic(x, truth, ridge=0), [0, 1.5, -0.5], atol=0.06)


def test_separable_data_gives_finite_weights() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    assert np.isfinite(logistic(x, np.array([False, False, True, True]))).all()


@pytest.mark.parametrize(("count", "limit"), [(0, 2.303), (6, 10.532), (40, 49.390)])
def test_the_limit_of_a_poisson_mean(count: int, limit: float) -> None:
    """As `scipy.stats.chi2.ppf(0.9, 2 * count + 2) / 2`."""
    assert poisson_limit(count, 0.9) == pytest.approx(limit, abs=1e-3)


def test_a_patient_loses_the_share_of_his_nodules() -> None:
    lost = np.array([True, False, False, True])
    patient = np.array(["b", "a", "b", "c"])
    np.testing.assert_allclose(per_patient(lost, patient), [0, 0.5, 1])
    with pytest.raises(ValueError, match="no nodules"):
        per_patient(lost[:0], patient[:0])


@pytest.mark.parametrize("patients", [30, 115, 400])
def test_without_a_loss_the_bound_is_near_that_of_clopper_and_pearson(patients: int) -> None:
    exact = float(beta.ppf(0.9, 1, patients))
    assert exact < upper_bound(np.zeros(patients), 0.1) < 1.1 * exact


def test_a_bound_lies_above_the_mean_and_grows_with_confidence() -> None:
    rng = np.random.default_rng(0)
    shares = rng.choice([0.0, 0.5, 1.0], 200, p=[0.9, 0.05, 0.05])
    wide, narrow = upper_bound(shares, 0.01), upper_bound(shares, 0.2)
    assert shares.mean() < narrow < wide < 0.25


def test_the_bound_holds_at_least_as_often_as_it_says() -> None:
    """400 sets of 80 patients who lose 0, a half or all: 3 % are chance."""
    rng = np.random.default_rng(1)
    sets = rng.choice([0.0, 0.5, 1.0], (400, 80), p=[0.88, 0.04, 0.08])
    holds = np.mean([upper_bound(one, 0.1) >= 0.1 for one in sets])
    assert holds >= 0.87


@pytest.mark.parametrize(
    ("shares", "alpha", "delta"),
    [([0.0], 0.0, 0.1), ([0.0], 1.0, 0.1), ([0.0], 0.1, 1.0), ([], 0.1, 0.1), ([1.2], 0.1, 0.1)],
)
def test_what_is_no_share_is_refused(shares: list[float], alpha: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        p_value(np.array(shares), alpha, delta)
