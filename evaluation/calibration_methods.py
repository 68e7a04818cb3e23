"""Three ways from a logit to a probability, and how they do on patients they were not fitted on.

Temperature: one number (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). Platt:
slope and intercept, with his smoothed targets (1999). Isotonic: any rising step function
(Zadrozny and Elkan, KDD 2002), by pooling adjacent violators.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evaluation.calibration import EVEN, BoolArray, class_weights
from evaluation.scores import calibrated
from imaging.volume import FloatArray

FOLDS = 5

Apply = Callable[[FloatArray], FloatArray]
"""From logits ``(n,)`` to probabilities."""

Fit = Callable[[FloatArray, BoolArray], Apply]
"""Fits on logits and truth; both classes weigh the same."""


def fit_temperature(logit: FloatArray, nodule: BoolArray) -> Apply:
    """sigmoid(slope logit): the temperature is 1 / slope."""
    slope = _newton(logit[:, None], nodule)[0]
    return lambda x: calibrated(x, (slope, 0.0))


def fit_platt(logit: FloatArray, nodule: BoolArray) -> Apply:
    """sigmoid(slope logit + intercept)."""
    slope, intercept = _newton(np.stack([logit, np.ones_like(logit)], 1), nodule)
    return lambda x: calibrated(x, (slope, intercept))


def fit_isotonic(logit: FloatArray, nodule: BoolArray) -> Apply:
    """A rising step function, kept away from 0 and 1 by what one more case would say."""
    order = np.argsort(logit, kind="stable")
    weight = class_weights(nodule, EVEN)[order]
    level = pooled(nodule[order].astype(float), weight)
    low, high = 1 / (2 + (~nodule).sum()), 1 - 1 / (2 + nodule.sum())
    steps, places = np.clip(level, low, high), logit[order]
    return lambda x: np.asarray(np.interp(x, places, steps))


METHODS: dict[str, Fit] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}


def cross_validated(
    fit: Fit, logit: FloatArray, nodule: BoolArray, group: npt.NDArray[np.str_], seed: int
) -> FloatArray:
    """Probabilities ``(n,)``, each by a fit that did not see its group."""
    names, owner = np.unique(group, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[owner]
    out = np.zeros(logit.size)
    for number in np.unique(fold):
        held = fold == number
        out[held] = fit(logit[~held], nodule[~held])(logit[held])
    return out


def pooled(value: FloatArray, weight: FloatArray) -> FloatArray:
    """The rising sequence nearest to ``value`` ``(n,)``: neighbours that fall are averaged."""
    blocks: list[tuple[float, float, int]] = []
    for v, w in zip(value.tolist(), weight.tolist(), strict=True):
        mean, mass, size = v, w, 1
        while blocks and blocks[-1][0] >= mean:
            before, more, count = blocks.pop()
            mean = (before * more + mean * mass) / (more + mass)
            mass, size = mass + more, size + count
        blocks.append((mean, mass, size))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


def _newton(x: FloatArray, nodule: BoolArray, steps: int = 60) -> FloatArray:
    """Weights ``(k,)`` of a logistic regression on ``(n, k)`` without a bias of its own."""
    positive, negative = nodule.sum(), (~nodule).sum()
    target = np.where(nodule, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weight = class_weights(nodule, EVEN)
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        chance = calibrated(x @ w)
        gradient = x.T @ (weight * (chance - target))
        curvature = (x * (weight * chance * (1 - chance))[:, None]).T @ x
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(w)), gradient)
        w = w - step / max(1.0, float(np.abs(step).max()))
    return np.asarray(w)
