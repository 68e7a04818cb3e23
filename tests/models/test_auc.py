import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from models.auc import auc


def test_without_positives_or_negatives_there_is_no_area() -> None:
    assert np.isnan(auc(np.array([1.0]), np.array([True])))
    assert np.isnan(auc(np.array([1.0]), np.array([False])))
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool)))


def test_auc_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.3
    score = np.round(rng.normal(truth, 1.0), 1)
    assert auc(score, truth) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
