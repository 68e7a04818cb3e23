"""Logistic regression, the limit of a rate, the area under a ROC curve, and a bound on a risk.

**What is guaranteed.** With probability 1 - delta over the calibration patients, a new patient
loses on average at most a share alpha of his nodules. Nodules of one patient resemble each other,
so the patient is the exchangeable unit, and his loss is the *share* of his nodules that are lost.
The miss rate pooled over nodules is not guaranteed; patients with many nodules weigh more there.
Networks, calibration, merger and thresholds must have been fitted on other patients. If settings
were compared by these losses, each of them gets a part of delta (Bonferroni).

**How.** The losses of ``n`` exchangeable patients lie in [0, 1]. A p-value tests "the risk exceeds
alpha"; the bound is the smallest alpha that is still rejected at delta. One bound is used, and it
was chosen before the losses were known: betting (Waudby-Smith and Ramdas, Estimating means of
bounded random variables by betting, J. R. Stat. Soc. B 86(1), 2024; for risk control Bates et al.,
J. ACM 68(6), 2021, section 3.1). It holds for any losses, and uses how much they vary. It reads the
patients in an order that is drawn without looking at their losses.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import pdtri

from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]


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

    It is the exact upper limit of a Poisson mean (Garwood, Biometrika 28, 1936).
    """
    return float(pdtri(count, 1 - confidence))


def auc(score: FloatArray, positive: BoolArray) -> float:
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


def per_patient(lost: BoolArray, patient: npt.NDArray[Any]) -> FloatArray:
    """Return the share of ``lost`` nodules ``(n,)`` of each patient, in the order of their names.

    Raises:
        ValueError: there is no nodule.
    """
    if lost.size == 0:
        raise ValueError("no nodules, expected at least one")
    _, group = np.unique(patient, return_inverse=True)
    return np.asarray(np.bincount(group, lost.astype(np.float64)) / np.bincount(group))


def p_value(shares: FloatArray, alpha: float, delta: float) -> float:
    """Return the p-value of "the risk exceeds ``alpha``" of losses ``(n,)``.

    It is most powerful at ``delta``, and valid at any other level.

    Raises:
        ValueError: a share is not in [0, 1], or ``alpha`` or ``delta`` is not in (0, 1).
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise ValueError(f"alpha = {alpha} and delta = {delta}, expected values in (0, 1)")
    if shares.size == 0 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"{shares.size} losses of {shares}, expected some in [0, 1]")
    # mean and variance of the losses before each patient, with one imaginary loss of 1/2 first
    count = np.arange(2, len(shares) + 2)
    mean = (0.5 + np.cumsum(shares)) / count
    variance = (0.25 + np.cumsum((shares - mean) ** 2)) / count
    before = np.concatenate([[0.25], variance[:-1]])
    # the stake of each bet that the next loss lies below alpha, and the capital after it
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (len(shares) * before)))
    capital = np.cumsum(np.log1p(-stake * (shares - alpha))).max()
    return math.exp(-max(float(capital), 0.0))


def upper_bound(shares: FloatArray, delta: float) -> float:
    """Return the smallest risk that losses ``(n,)`` reject at ``delta``, by bisection."""
    shares = np.random.default_rng(len(shares)).permutation(shares)
    low, high = 0.0, 1.0  # a risk of ``high`` is rejected, one of ``low`` is not
    for _ in range(45):
        middle = (low + high) / 2
        rejected = p_value(shares, middle, delta) <= delta
        low, high = (low, middle) if rejected else (middle, high)
    return high
