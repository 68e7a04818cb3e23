"""Bound the share of missed nodules, with confidence.

**What is guaranteed.** With probability 1 - delta over the calibration patients, a new patient
loses on average at most a share alpha of his nodules. Nodules of one patient resemble each other,
so the patient is the exchangeable unit, and his loss is the *share* of his nodules that are lost.
The miss rate pooled over nodules is not guaranteed; patients with many nodules weigh more there.
Networks, calibration, merger and thresholds must have been fitted on other patients.

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

from imaging.volume import FloatArray

DELTA = 0.1
"""The probability that more is missed than a guarantee says."""

BoolArray = npt.NDArray[np.bool_]


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
