"""Bounds on a risk from a sample of losses: what a finite calibration set can promise.

The losses of ``n`` exchangeable patients lie in [0, 1] and average to ``mean_loss``. A p-value
speaks against "the risk exceeds alpha"; a bound is the smallest alpha that is still rejected.
"""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray

_HALVINGS = 45


class Bound(Enum):
    """How the risk is bounded.

    ``BINOMIAL`` is exact where every loss is 0 or 1 (Clopper and Pearson, Biometrika 26, 1934).
    ``HOEFFDING_BENTKUS`` holds for any losses in [0, 1] (Bates et al., Distribution-free,
    risk-controlling prediction sets, J. ACM 68(6), 2021, section 3.1; Angelopoulos et al., Learn
    then test, 2021, proposition 2).
    """

    BINOMIAL = "binomial"
    HOEFFDING_BENTKUS = "hoeffding-bentkus"


def p_value(mean_loss: npt.ArrayLike, n: int, alpha: float, bound: Bound) -> FloatArray:
    """The p-value against "the risk exceeds ``alpha``", for each of ``mean_loss``.

    Raises:
        ValueError: ``n`` < 1, or ``alpha`` is not in (0, 1).
    """
    if n < 1 or not 0 < alpha < 1:
        raise ValueError(f"n = {n} patients and alpha = {alpha} give no p-value")
    mean = np.asarray(mean_loss, np.float64)
    # a loss of k patients is k / n in floating point, and must not count as k + 1
    count = np.ceil(n * mean - 1e-6).astype(np.int64)
    tail = binomial_cdf(n, alpha)[np.clip(count, 0, n)]
    if bound is Bound.BINOMIAL:
        return np.asarray(tail)
    hoeffding = np.exp(-n * _divergence(np.minimum(mean, alpha), alpha))
    return np.minimum(np.minimum(hoeffding, math.e * tail), 1.0)


def upper_bound(mean_loss: float, n: int, delta: float, bound: Bound) -> float:
    """The smallest risk that, with confidence 1 - ``delta``, is not exceeded; 1 if none is."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rejected = float(p_value(mean_loss, n, middle, bound)) <= delta
        low, high = (low, middle) if rejected else (middle, high)
    return high


def fewest_patients(alpha: float, delta: float) -> int:
    """How many patients promise ``alpha`` at ``delta`` if none of them loses anything."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def binomial_cdf(n: int, p: float) -> FloatArray:
    """P(X <= k) for k = 0..n ``(n + 1,)``, X binomial of ``n`` draws with chance ``p``."""
    k = np.arange(n)
    ratio = np.log((n - k) / (k + 1)) + math.log(p) - math.log1p(-p)
    log_mass = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(ratio)])
    return np.minimum(np.exp(np.logaddexp.accumulate(log_mass)), 1.0)


def _divergence(a: FloatArray, b: float) -> FloatArray:
    """Kullback-Leibler divergence of Bernoulli(a) from Bernoulli(b), for a <= b."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(a > 0, a * np.log(a / b), 0.0)
    return np.asarray(hits + (1 - a) * (np.log1p(-a) - math.log1p(-b)))
