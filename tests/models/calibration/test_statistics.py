import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from models.calibration.statistics import auc, logistic, poisson_limit


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
