"""Logistic regression, the limit of a rate, and the area under a ROC curve."""

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray


def logistic(
    features: FloatArray, truth: np.ndarray, weight: FloatArray | None = None, ridge: float = 1e-2
) -> FloatArray:
    """Fit a logistic regression on ``(n, k)`` and return its weights ``(1 + k,)``, bias first.

    Without ``weight`` ``(n,)`` both classes weigh the same, so that 0.5 lies where they are
    equally likely. Targets are smoothed as by Platt (1999).
    """
    # a column of ones for the bias; smoothed targets, in cases of full weight
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    positives, negatives = truth.sum(), (~truth).sum()
    if weight is None:
        weight = np.where(truth, 0.5 / positives, 0.5 / negatives) * len(truth)
        ridge *= len(truth)
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    penalty = np.diag([0.0] + [ridge] * features.shape[1])
    # Newton's method on the penalised log-likelihood; the bias is not penalised
    w = np.zeros(x.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (weight * (chance - target)) + penalty @ w
        curvature = (x * (weight * chance * (1 - chance))[:, None]).T @ x + penalty
        w = w - np.linalg.solve(curvature + 1e-9 * np.eye(len(w)), gradient)
    return w


def poisson_limit(count: int, confidence: float) -> float:
    """Return the mean at which more than ``count`` events have the probability ``confidence``.

    It is the exact upper limit of a Poisson mean (Garwood, Biometrika 28, 1936), by bisection.
    """
    low, high = 0.0, 10.0 + 3 * count
    for _ in range(60):
        mean = (low + high) / 2
        # the logarithms of the terms e^-m m^k / k!, which do not overflow
        logs = np.append(0.0, np.cumsum(np.log(mean / np.arange(1, count + 1)))) - mean
        low, high = (mean, high) if np.exp(logs).sum() > 1 - confidence else (low, mean)
    return high


def auc(score: FloatArray, positive: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties half; NaN if none.

    It is Mann and Whitney's U, equal to scikit-learn's ``roc_auc_score``, whose argument checks
    would take most of the time of a bootstrap.
    """
    high, low = score[positive], np.sort(score[~positive])
    if not (high.size and low.size):
        return float("nan")
    # negatives below each positive, counted twice; equal ones are in one of the two counts
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * low.size))
