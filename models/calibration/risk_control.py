"""Conformal risk control: thresholds that bound the share of missed nodules, with confidence.

**What is guaranteed.** With probability 1 - delta over the calibration patients, a new patient
loses on average at most a share alpha of his nodules. Nodules of one patient resemble each
other, so the patient is the exchangeable unit, and his loss is the *share* of his nodules that
are lost: never proposed, dismissed on the edge, or below ``possible`` after the merge, and so
in neither list of the report. The miss rate
pooled over nodules is not guaranteed; patients with many nodules weigh more there. Networks,
calibration and merger must have been fitted on other patients.

**How.** Thresholds are tried along a path from the most to the least cautious, fixed beforehand.
Losses only grow along it. The path stops at the first rejected step, and the step before it is used
(fixed-sequence testing: Angelopoulos et al., Learn then test, 2021, section 2.3; for monotone
losses the same as Bates et al., J. ACM 68(6), 2021, theorem 1). The losses of ``n`` exchangeable
patients lie in [0, 1]. A p-value tests "the risk exceeds alpha"; a bound is the smallest alpha
that is still rejected.

In a scan without candidates all nodules count as lost, although audits may find some.
"""

import hashlib
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray

ALPHA, DELTA = 0.028, 0.1
"""The default guarantee: 97.2 % sensitivity with 90 % confidence."""

STEPS = 400

BoolArray = npt.NDArray[np.bool_]


class Bound(Enum):
    """The bound on the risk.

    ``BINOMIAL`` is exact where every loss is 0 or 1 (Clopper and Pearson, Biometrika 26, 1934).
    ``HOEFFDING_BENTKUS`` holds for any losses in [0, 1] (Bates et al., Distribution-free,
    risk-controlling prediction sets, J. ACM 68(6), 2021, section 3.1; Angelopoulos et al., Learn
    then test, 2021, proposition 2).
    ``BETTING`` holds for any losses too, and uses how much they vary (Waudby-Smith and Ramdas,
    Estimating means of bounded random variables by betting, J. R. Stat. Soc. B 86(1), 2024, as in
    Bates et al., section 3.1). It reads the patients in a fixed order.
    """

    BETTING = "betting"
    BINOMIAL = "binomial"
    HOEFFDING_BENTKUS = "hoeffding-bentkus"


@dataclass(frozen=True, eq=False)
class ScoredNodules:
    """The scores of calibration or test nodules.

    Attributes:
        edge: calibrated score of the edge ``(n,)``; ``-inf`` if the nodule was not proposed.
        merged: merged probability of edge and cloud ``(n,)``.
        patient: the patient of each ``(n,)``, any labels.
    """

    edge: FloatArray
    merged: FloatArray
    patient: npt.NDArray[Any]

    def __post_init__(self) -> None:
        shapes = {self.edge.shape, self.merged.shape, self.patient.shape}
        if len(shapes) != 1 or self.edge.ndim != 1 or self.edge.size == 0:
            raise ValueError(f"nodules of shapes {shapes}, expected one shape (n,) with n >= 1")
        if np.isnan(self.edge).any() or np.isnan(self.merged).any():
            raise ValueError("a score is NaN")

    def __len__(self) -> int:
        return self.edge.size

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that change with any score or patient.

        The order and decimals after the fourth, in which engines differ, do not count.
        """
        rows = zip(self.patient, self.edge, self.merged, strict=True)
        lines = sorted(f"{patient} {edge:.4f} {merged:.4f}" for patient, edge, merged in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class ThresholdPath:
    """Thresholds from the most to the least cautious, both ``(steps,)`` and non-decreasing.

    A nodule below ``dismiss`` on the edge, or below ``possible`` after the merge, is lost.
    """

    dismiss: FloatArray
    possible: FloatArray

    def __post_init__(self) -> None:
        shapes = self.dismiss.shape, self.possible.shape
        if shapes[0] != shapes[1] or self.dismiss.size == 0:
            raise ValueError(f"thresholds of shapes {shapes[0]} and {shapes[1]}, expected equal")
        if (np.diff(self.dismiss) < 0).any() or (np.diff(self.possible) < 0).any():
            raise ValueError("a threshold falls along the path, expected non-decreasing ones")


@dataclass(frozen=True)
class Guarantee:
    """The guaranteed bound on the miss rate, or the reason why there is none.

    ``n`` nodules of ``patients`` patients were calibrated on; ``reason`` is empty if it ``holds``.
    """

    alpha: float
    delta: float
    n: int
    calibration_id: str
    holds: bool
    reason: str
    patients: int

    @property
    def text(self) -> str:
        """The guarantee in one line, for the report."""
        if not self.holds:
            return f"no guarantee: {self.reason}"
        return (
            f"with {_percent(1 - self.delta)} confidence at most {_percent(self.alpha)} of nodules "
            f"are missed, on average over patients ({self.n} nodules of {self.patients} patients, "
            f"calibration {self.calibration_id})"
        )


@dataclass(frozen=True)
class Controlled:
    """Thresholds and what they guarantee.

    If the guarantee does not hold, the thresholds are the most cautious of the path: everything
    proposed is escalated and reported. ``alpha_reached`` is the smallest miss rate that they
    guarantee at delta, ``delta_reached`` the smallest delta at which they guarantee alpha.
    """

    dismiss: float
    possible: float
    guarantee: Guarantee
    alpha_reached: float
    delta_reached: float


def straight_path(dismiss: float = 0.0, *, steps: int = STEPS) -> ThresholdPath:
    """Return a path with ``possible`` from 0 to 1, denser near 0, at one ``dismiss``."""
    if not 0 <= dismiss <= 1:
        raise ValueError(f"dismiss = {dismiss}, expected a value in [0, 1]")
    # squares are denser near 0, where the guarantee is decided
    return ThresholdPath(np.full(steps, dismiss), np.linspace(0, 1, steps) ** 2)


def quantile_path(others: ScoredNodules, *, steps: int = STEPS) -> ThresholdPath:
    """Return a path of equal quantiles of both scores of *other* nodules.

    They must not be the calibration's, which would void the guarantee.
    """
    # both thresholds at the same quantile of their scores; the first step loses nothing
    share = np.linspace(0, 1, steps)
    proposed = np.isfinite(others.edge)
    if not proposed.any():
        raise ValueError("none of the nodules was proposed, expected at least one")
    scores = (others.edge[proposed], others.merged[proposed])
    dismiss, possible = (np.quantile(one, share, method="lower") for one in scores)
    dismiss[0] = possible[0] = 0.0
    return ThresholdPath(dismiss, possible)


def losses(nodules: ScoredNodules, path: ThresholdPath, report: float) -> FloatArray:
    """Return the share of nodules that each patient loses at each step ``(patients, steps)``.

    A nodule with an edge score of ``report`` or more is reported without the cloud.
    """
    # lost: dismissed by the edge, below ``possible`` after the merge, or never proposed
    escalated = (nodules.edge < report)[:, None]
    dismissed = nodules.edge[:, None] < np.minimum(path.dismiss, report)
    lost = dismissed | (escalated & (nodules.merged[:, None] < path.possible))
    lost |= np.isneginf(nodules.edge)[:, None]
    return per_patient(lost, nodules.patient)


def per_patient(lost: BoolArray, patient: npt.NDArray[Any]) -> FloatArray:
    """Average ``lost`` ``(nodules, steps)`` over each patient's nodules."""
    # one row a patient, one column a nodule: the product sums, the row sums divide
    _, group = np.unique(patient, return_inverse=True)
    member = np.equal.outer(np.arange(group.max() + 1), group).astype(np.float64)
    return np.asarray(member @ lost / member.sum(1, keepdims=True))


def furthest(
    mean_loss: FloatArray, n: int, alpha: float, delta: float, bound: Bound
) -> npt.NDArray[np.int64]:
    """Return the last step before the bound first fails, or -1; rows are ``(..., steps)``."""
    # the product is 1 up to the first step that fails, so its sum counts the steps that hold
    holds = p_value(mean_loss, n, alpha, bound) <= delta
    return np.asarray(np.cumprod(holds, axis=-1).sum(-1) - 1)


def counted(shares: FloatArray, bound: Bound) -> FloatArray:
    """Return the losses for ``bound``: the exact one counts a patient who loses any nodule.

    That is never less than the share, so its guarantee holds for the share too.
    """
    return (shares > 0).astype(np.float64) if bound is Bound.BINOMIAL else shares


def control(
    nodules: ScoredNodules,
    path: ThresholdPath,
    *,
    report: float,
    alpha: float = ALPHA,
    delta: float = DELTA,
    bound: Bound = Bound.HOEFFDING_BENTKUS,
) -> Controlled:
    """Return the least cautious thresholds of ``path`` that guarantee ``alpha`` at ``delta``.

    Raises:
        ValueError: ``alpha`` or ``delta`` is not in (0, 1).
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise ValueError(f"alpha = {alpha} and delta = {delta}, expected values in (0, 1)")
    # follow the path while the bound holds; without a first step, state the tightest pair
    shares = losses(nodules, path, report)
    n, p_values = len(shares), p_value_of(shares, alpha, delta, bound)
    step = int(np.cumprod(p_values <= delta).sum() - 1)
    at = max(step, 0)
    reached = upper_bound_of(shares[:, at], delta, bound)
    sure = float(p_values[at])
    reason = "" if step >= 0 else _why_not(n, alpha, delta, reached, sure)
    guarantee = Guarantee(alpha, delta, len(nodules), nodules.identity, step >= 0, reason, n)
    dismiss = min(float(path.dismiss[at]), report)
    return Controlled(dismiss, float(path.possible[at]), guarantee, reached, sure)


def _why_not(n: int, alpha: float, delta: float, reached: float, sure: float) -> str:
    # too few patients whatever they lose, or too large a loss at the first step
    needed = fewest_patients(alpha, delta)
    few = f"{n} patients are too few, {needed} without a miss are needed"
    why = few if n < needed else f"{n} patients lose too much at the most cautious thresholds"
    confident = _percent(1 - delta)
    below = f"or {_percent(alpha)} with {_percent(1 - sure)}"
    if sure > 0.5:
        below = f"and {_percent(alpha)} not even with 50 %"
    return (
        f"at most {_percent(alpha)} missed cannot be guaranteed with {confident} confidence, "
        f"{why}; possible: {_percent(reached)} with {confident}, {below}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def p_value(mean_loss: npt.ArrayLike, n: int, alpha: float, bound: Bound) -> FloatArray:
    """Return the p-value of "the risk exceeds ``alpha``" for each of ``mean_loss``.

    Raises:
        ValueError: ``n`` < 1, ``alpha`` is not in (0, 1), or the bound needs every loss
            (`p_value_of`).
    """
    if bound is Bound.BETTING:
        raise ValueError("the betting bound has no p-value of a mean alone")
    if n < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"no p-value for n = {n} and alpha = {alpha}, expected n >= 1 and 0 < alpha < 1"
        )
    mean = np.asarray(mean_loss, np.float64)
    # a loss of k patients is k / n in floating point, and must not count as k + 1
    count = np.ceil(n * mean - 1e-6).astype(np.int64)
    tail = binomial_cdf(n, alpha)[np.clip(count, 0, n)]
    if bound is Bound.BINOMIAL:
        return np.asarray(tail)
    # the smaller of Hoeffding's and Bentkus's p-value
    hoeffding = np.exp(-n * _divergence(np.minimum(mean, alpha), alpha))
    return np.minimum(np.minimum(hoeffding, math.e * tail), 1.0)


def upper_bound(mean_loss: float, n: int, delta: float, bound: Bound) -> float:
    """Return the smallest risk not exceeded with confidence 1 - ``delta``, by bisection."""
    low, high = 0.0, 1.0  # a risk of ``high`` is rejected, one of ``low`` is not
    for _ in range(45):
        middle = (low + high) / 2
        rejected = float(p_value(mean_loss, n, middle, bound)) <= delta
        low, high = (low, middle) if rejected else (middle, high)
    return high


def p_value_of(shares: FloatArray, alpha: float, delta: float, bound: Bound) -> FloatArray:
    """Return the p-value of "the risk exceeds ``alpha``" of losses ``(n, ...)``, by that bound.

    ``BETTING`` is most powerful at ``delta``, and valid at any other level.
    """
    if bound is not Bound.BETTING:
        return p_value(counted(shares, bound).mean(0), len(shares), alpha, bound)
    # mean and variance of the losses before each patient, with one imaginary loss of 1/2 first
    count = np.arange(2, len(shares) + 2).reshape(-1, *[1] * (shares.ndim - 1))
    mean = (0.5 + np.cumsum(shares, 0)) / count
    variance = (0.25 + np.cumsum((shares - mean) ** 2, 0)) / count
    before = np.concatenate([np.full_like(variance[:1], 0.25), variance[:-1]])
    # the stake of each bet that the next loss lies below alpha, and the capital after it
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (len(shares) * before)))
    capital = np.cumsum(np.log1p(-stake * (shares - alpha)), 0).max(0)
    return np.asarray(np.exp(-np.maximum(capital, 0.0)))


def upper_bound_of(shares: FloatArray, delta: float, bound: Bound) -> float:
    """Return the smallest risk that losses ``(n,)`` reject at ``delta``, by bisection."""
    if bound is not Bound.BETTING:
        return upper_bound(float(counted(shares, bound).mean()), len(shares), delta, bound)
    low, high = 0.0, 1.0
    for _ in range(45):
        middle = (low + high) / 2
        rejected = float(p_value_of(shares, middle, delta, bound)) <= delta
        low, high = (low, middle) if rejected else (middle, high)
    return high


def expected_bound(mean_loss: float, n: int) -> float:
    """Return the bound on the risk that holds on average over calibration sets of ``n`` patients.

    It says nothing of how often a set exceeds it. Source: Angelopoulos et al., Conformal risk
    control, 2022 (arXiv:2208.02814), theorem 1, for losses of at most 1.
    """
    return (n * mean_loss + 1) / (n + 1)


def fewest_patients(alpha: float, delta: float) -> int:
    """Return the number of patients without a loss guarantee ``alpha`` at ``delta``."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def binomial_cdf(n: int, p: float) -> FloatArray:
    """Return P(X <= k) for k = 0..n ``(n + 1,)``, X binomial of ``n`` draws with chance ``p``."""
    # in logarithms: each mass from the one before, then their sums
    k = np.arange(n)
    ratio = np.log((n - k) / (k + 1)) + math.log(p) - math.log1p(-p)
    log_mass = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(ratio)])
    return np.minimum(np.exp(np.logaddexp.accumulate(log_mass)), 1.0)


def _divergence(a: FloatArray, b: float) -> FloatArray:
    """Return the Kullback-Leibler divergence of Bernoulli(a) from Bernoulli(b), for a <= b."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(a > 0, a * np.log(a / b), 0.0)
    return np.asarray(hits + (1 - a) * (np.log1p(-a) - math.log1p(-b)))
