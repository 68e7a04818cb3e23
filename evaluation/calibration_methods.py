"""Three ways from a logit to a probability, and how they do on patients they were not fitted on.

Temperature: one number (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). Platt:
slope and intercept, with his smoothed targets (1999). Isotonic: any rising step function
(Zadrozny and Elkan, KDD 2002). The fits are scikit-learn's, of the extra `train`.
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
    by = _regression(logit, nodule, intercept=False)
    return lambda x: calibrated(x, by)


def fit_platt(logit: FloatArray, nodule: BoolArray) -> Apply:
    """sigmoid(slope logit + intercept)."""
    by = _regression(logit, nodule, intercept=True)
    return lambda x: calibrated(x, by)


def fit_isotonic(logit: FloatArray, nodule: BoolArray) -> Apply:
    """A rising step function, kept away from 0 and 1 by what one more case would say."""
    from sklearn.isotonic import IsotonicRegression

    low, high = 1 / (2 + (~nodule).sum()), 1 - 1 / (2 + nodule.sum())
    steps = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    steps.fit(logit, nodule, class_weights(nodule, EVEN))
    return lambda x: np.asarray(steps.predict(x))


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


def _regression(logit: FloatArray, nodule: BoolArray, *, intercept: bool) -> tuple[float, float]:
    """Slope and intercept (or 0) of a logistic regression on Platt's targets, unregularized."""
    from sklearn.linear_model import LogisticRegression

    positive, negative = nodule.sum(), (~nodule).sum()
    target = np.where(nodule, (positive + 1) / (positive + 2), 1 / (negative + 2))
    # A target between the classes is a candidate of both, each with its share of the weight.
    share = np.concatenate([target, 1 - target]) * np.tile(class_weights(nodule, EVEN), 2)
    fit = LogisticRegression(C=np.inf, fit_intercept=intercept, solver="newton-cholesky", tol=1e-10)
    fit.fit(np.tile(logit, 2)[:, None], np.repeat([1, 0], logit.size), share)
    return float(fit.coef_.item()), float(np.ravel(fit.intercept_)[0])
