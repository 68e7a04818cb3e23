"""Calibration of scores: reliability, expected calibration error, and three ways to fit it.

Bins hold equal mass (Nixon et al., Measuring Calibration in Deep Learning, CVPR workshops 2019):
scores crowd at both ends, where bins of equal width would be full and those between empty.

The class prior is the share of nodules among candidates. It depends on how candidates were
collected, not on the network: each class weighs the prior it is given, whatever its number.

Temperature is one number (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). Platt
is slope and intercept, with his smoothed targets (1999). Isotonic is any rising step function
(Zadrozny and Elkan, KDD 2002). The fits are scikit-learn's, of the extra `train`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import Interval, draw, interval
from evaluation.accuracy.scores import calibrated
from imaging.volume import FloatArray

EVEN = 0.5
"""The prior of equal weight for nodules and false candidates; the shipped fit has it."""

_LEAST = 1e-6

BoolArray = npt.NDArray[np.bool_]

Apply = Callable[[FloatArray], FloatArray]
"""From logits ``(n,)`` to probabilities."""

Fit = Callable[[FloatArray, BoolArray], Apply]
"""Fits on logits and truth; both classes weigh the same."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal mass by rising score, each ``(bins,)``: mean score, share of nodules, mass."""

    score: FloatArray
    share: FloatArray
    mass: FloatArray

    @property
    def ece(self) -> float:
        """Return the expected calibration error: the mean distance between score and share."""
        return float((np.abs(self.score - self.share) * self.mass).sum())


def class_weights(nodule: BoolArray, prior: float, count: FloatArray | None = None) -> FloatArray:
    """Return weights ``(n,)`` that add up to 1 and give nodules the share ``prior``.

    ``count`` is how often each candidate counts within its class; None counts each once.
    """
    counts = np.ones(nodule.size) if count is None else count
    positive, negative = counts[nodule].sum(), counts[~nodule].sum()
    if not (positive > 0 and negative > 0):
        raise ValueError(f"{positive:g} nodules and {negative:g} others: both are needed")
    return np.asarray(np.where(nodule, prior / positive, (1 - prior) / negative) * counts)


def reliability(
    score: FloatArray, nodule: BoolArray, weight: FloatArray, bins: int = 10
) -> Reliability:
    """Return the reliability of scores ``(n,)`` in [0, 1].

    A candidate on the edge of two bins belongs to both, in parts.
    """
    # Running sums of weighted score and truth, read at the edges of bins of equal weight.
    order = np.argsort(score, kind="stable")
    ends = np.concatenate([[0.0], np.cumsum(weight[order])])
    ends /= ends[-1]
    edges = np.linspace(0, 1, bins + 1)
    sums = [
        np.diff(np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(weight[order] * value)])))
        for value in (score[order], nodule[order].astype(float))
    ]
    mass = np.full(bins, weight.sum() / bins)
    return Reliability(sums[0] / mass, sums[1] / mass, mass / weight.sum())


def log_loss(score: FloatArray, nodule: BoolArray, weight: FloatArray) -> float:
    """Return the mean of -ln of the probability that was given to the truth."""
    clipped = np.clip(score, _LEAST, 1 - _LEAST)
    loss = -np.where(nodule, np.log(clipped), np.log(1 - clipped))
    return float((loss * weight).sum() / weight.sum())


def brier(score: FloatArray, nodule: BoolArray, weight: FloatArray) -> float:
    """Return the mean squared distance to the truth."""
    return float((((score - nodule) ** 2) * weight).sum() / weight.sum())


def ece_interval(
    score: FloatArray,
    nodule: BoolArray,
    group: npt.NDArray[np.str_],
    prior: float,
    *,
    resamples: int,
    seed: int,
) -> Interval:
    """Return the calibration error with a percentile interval by bootstrap over groups.

    A resample tends to have more error than the sample: the interval leans upwards.
    """
    value = reliability(score, nodule, class_weights(nodule, prior)).ece
    names, owner = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < resamples:
        count = draw(len(names), rng)[owner]
        if count[nodule].any() and count[~nodule].any():
            weight = class_weights(nodule, prior, count)
            drawn.append(reliability(score, nodule, weight).ece)
    return interval(value, np.array(drawn))


def at_prior(score: FloatArray, prior: float, fitted: float = EVEN) -> FloatArray:
    """Return scores that were fitted at one class prior as they are at another."""
    odds = prior * (1 - fitted) / ((1 - prior) * fitted)
    clipped = np.clip(score, _LEAST, 1 - _LEAST)
    changed = odds * clipped / (1 - clipped)
    return np.asarray(changed / (1 + changed))


def fit_sigmoid(logit: FloatArray, nodule: BoolArray, *, intercept: bool) -> Apply:
    """Fit sigmoid(slope logit + intercept), or without intercept: the temperature is 1 / slope.

    It is an unregularized regression on Platt's targets.
    """
    from sklearn.linear_model import LogisticRegression

    positive, negative = nodule.sum(), (~nodule).sum()
    target = np.where(nodule, (positive + 1) / (positive + 2), 1 / (negative + 2))
    # A target between the classes is a candidate of both, each with its share of the weight.
    share = np.concatenate([target, 1 - target]) * np.tile(class_weights(nodule, EVEN), 2)
    fit = LogisticRegression(C=np.inf, fit_intercept=intercept, solver="newton-cholesky", tol=1e-10)
    fit.fit(np.tile(logit, 2)[:, None], np.repeat([1, 0], logit.size), share)
    by = float(fit.coef_.item()), float(np.ravel(fit.intercept_)[0])
    return lambda x: calibrated(x, by)


def fit_isotonic(logit: FloatArray, nodule: BoolArray) -> Apply:
    """Fit a rising step function, kept away from 0 and 1 by one more case of either class."""
    from sklearn.isotonic import IsotonicRegression

    low, high = 1 / (2 + (~nodule).sum()), 1 - 1 / (2 + nodule.sum())
    steps = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    steps.fit(logit, nodule, class_weights(nodule, EVEN))
    return lambda x: np.asarray(steps.predict(x))


METHODS: dict[str, Fit] = {
    "temperature": partial(fit_sigmoid, intercept=False),
    "platt": partial(fit_sigmoid, intercept=True),
    "isotonic": fit_isotonic,
}


def cross_validated(
    fit: Fit, logit: FloatArray, nodule: BoolArray, group: npt.NDArray[np.str_], seed: int
) -> FloatArray:
    """Return probabilities ``(n,)``, each by a fit that did not see its group."""
    names, owner = np.unique(group, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % 5)[owner]
    out = np.zeros(logit.size)
    for number in np.unique(fold):
        held = fold == number
        out[held] = fit(logit[~held], nodule[~held])(logit[held])
    return out
