"""How far a score can be taken for a probability: reliability and expected calibration error.

Bins hold equal mass (Nixon et al., Measuring Calibration in Deep Learning, CVPR workshops 2019):
scores crowd at both ends, where bins of equal width would be full, and leave those between empty.

What share of candidates are nodules is the class prior. It belongs to how candidates were
collected, not to the network: here every class weighs the prior it is given, whatever its number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.bootstrap import Interval, interval
from imaging.volume import FloatArray

BINS = 10
EVEN = 0.5
"""The prior at which nodules and alarms weigh the same; the shipped calibration is fitted at it."""

_LEAST = 1e-6

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal mass by rising score, each ``(bins,)``: mean score, share of nodules, mass."""

    score: FloatArray
    share: FloatArray
    mass: FloatArray

    @property
    def ece(self) -> float:
        """The mean distance between score and share."""
        return float((np.abs(self.score - self.share) * self.mass).sum())


def class_weights(nodule: BoolArray, prior: float, count: FloatArray | None = None) -> FloatArray:
    """Weights ``(n,)`` that add up to 1 and give nodules the share ``prior``.

    ``count`` is how often each candidate counts within its class, once where it is None.
    """
    often = np.ones(nodule.size) if count is None else count
    positive, negative = often[nodule].sum(), often[~nodule].sum()
    if not (positive > 0 and negative > 0):
        raise ValueError(f"{positive:g} nodules and {negative:g} alarms: both are needed")
    return np.asarray(np.where(nodule, prior / positive, (1 - prior) / negative) * often)


def reliability(
    score: FloatArray, nodule: BoolArray, weight: FloatArray, bins: int = BINS
) -> Reliability:
    """The reliability of scores ``(n,)`` in [0, 1]; a candidate on an edge is in both bins."""
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
    """The mean of -ln of what was given to the truth."""
    clipped = np.clip(score, _LEAST, 1 - _LEAST)
    loss = -np.where(nodule, np.log(clipped), np.log(1 - clipped))
    return float((loss * weight).sum() / weight.sum())


def brier(score: FloatArray, nodule: BoolArray, weight: FloatArray) -> float:
    """The mean squared distance to the truth."""
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
    """The calibration error with a percentile interval by bootstrap over groups.

    A resample never has less error on the whole: the interval leans upwards.
    """
    value = reliability(score, nodule, class_weights(nodule, prior)).ece
    names, owner = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < resamples:
        count = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[owner].astype(
            float
        )
        if count[nodule].any() and count[~nodule].any():
            weight = class_weights(nodule, prior, count)
            drawn.append(reliability(score, nodule, weight).ece)
    return interval(value, np.array(drawn))


def at_prior(score: FloatArray, prior: float, fitted: float = EVEN) -> FloatArray:
    """Scores fitted at one class prior as they are at another: their odds are multiplied."""
    odds = prior * (1 - fitted) / ((1 - prior) * fitted)
    clipped = np.clip(score, _LEAST, 1 - _LEAST)
    changed = odds * clipped / (1 - clipped)
    return np.asarray(changed / (1 + changed))
