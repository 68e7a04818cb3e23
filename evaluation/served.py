"""What the sample can carry: the promise that is served, and whether it is kept.

Where the level asked for is beyond the sample, no set promises it and none breaks it, which
proves nothing. So two questions are put that the sample can answer. **At a level it carries:**
thresholds are controlled at an alpha that nearly every set of the size of a split can promise.
There nothing is reported without asking, so that the path ends where every nodule is lost: with
the report cut even its last step may lose less than alpha, and no set could break a promise.
**As it is served:** each set states the tightest alpha of the fitted thresholds, and that is held
against the patients left out, and against the population that the set was drawn from. How high
that could have been at worst stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from evaluation.bootstrap import draw
from evaluation.guarantee import (
    CALIBRATION_SHARE,
    Promise,
    cost,
    draw_patients,
    level,
    split_patients,
    worst_rest,
)
from evaluation.scores import Scores
from imaging.volume import FloatArray
from models.calibration.risk_control import (
    Bound,
    Controlled,
    Guarantee,
    ScoredNodules,
    ThresholdPath,
    counted,
    losses,
    upper_bound,
)

MOST = 0.95
"""The share of sets that can promise the level that is carried."""

UNCUT = 2.0
"""In place of ``report``: no score is above it, so nothing is reported without asking."""


def carried(
    nodules: ScoredNodules, promise: Promise, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Both experiments at the smallest alpha, in whole percent, that the sample carries."""
    uncut = replace(promise, report=UNCUT)
    alpha = max(promise.alpha, carried_alpha(nodules, uncut, resamples, rng))
    at = replace(uncut, alpha=alpha)
    return {
        "alpha": alpha,
        "delta": promise.delta,
        "splits": split_patients(nodules, at, resamples, rng).as_json(),
        "draws": draw_patients(nodules, at, resamples, rng).as_json(),
    }


def carried_alpha(
    nodules: ScoredNodules, promise: Promise, resamples: int, rng: np.random.Generator
) -> float:
    """The alpha that `MOST` of such sets can promise with the most cautious thresholds."""
    shares = counted(losses(nodules, promise.path, promise.report)[:, :1], promise.bound)[:, 0]
    taken = _taken(len(shares))
    means = [float(rng.permutation(shares)[:taken].mean()) for _ in range(resamples)]
    worst = float(np.quantile(means, MOST, method="higher"))
    return math.ceil(100 * upper_bound(worst, taken, promise.delta, promise.bound)) / 100


def served(
    scores: Scores,
    test: Scores | None,
    promise: Promise,
    settings: Mapping[str, Any],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The fitted thresholds: what they promise, in sets drawn anew, and to test patients.

    Args:
        scores: of the calibration.
        test: of patients never calibrated on.
        promise: what was asked for.
        settings: ``thresholds`` and ``guarantee`` as `models.calibration.promise` gives them.
        resamples: sets that are drawn.
        rng: draws them.
    """
    at, terms = settings["thresholds"], settings["guarantee"]
    point = ThresholdPath(np.array([at["dismiss"]]), np.array([at["final"]]))
    shares = losses(scores.nodules, point, at["report"])[:, 0]
    given = Guarantee(
        terms["alpha"], terms["delta"], len(scores.nodules), terms["calibration"], True, "",
        terms["patients"],
    )  # fmt: skip
    found = Controlled(at["dismiss"], at["final"], given, terms["alpha"], terms["delta"])
    as_served = replace(promise, path=point, alpha=terms["alpha"])
    return {
        **settings,
        "cost": cost(scores, as_served, found),
        "calibration": level(scores.nodules, as_served, found),
        "splits": _stated_in_splits(shares, promise, resamples, rng),
        "draws": _stated_in_draws(shares, promise, resamples, rng),
        "test": None if test is None else level(test.nodules, as_served, found),
    }


def _stated_in_splits(
    shares: FloatArray, promise: Promise, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Each half of the patients states its alpha, which the other half is held against."""
    taken = _taken(len(shares))
    orders = [rng.permutation(shares) for _ in range(resamples)]
    inside = np.array([order[:taken].mean() for order in orders])
    rest = np.array([order[taken:].mean() for order in orders])
    luckiest, worst = float(np.sort(shares)[:taken].mean()), worst_rest(shares, taken)
    return _stated(inside, taken, rest, promise, luckiest, worst)


def _stated_in_draws(
    shares: FloatArray, promise: Promise, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Each set drawn from the patients states its alpha, which they all are held against."""
    n = len(shares)
    means = np.array([draw(n, rng) @ shares / n for _ in range(resamples)])
    luckiest, worst = float(shares.min()), float(shares.mean())
    return _stated(means, n, np.full(resamples, worst), promise, luckiest, worst)


def _stated(
    means: FloatArray,
    n: int,
    elsewhere: FloatArray,
    promise: Promise,
    luckiest: float,
    worst: float,
) -> dict[str, Any]:
    """The alphas that sets of these means state, held against the rates ``elsewhere``.

    ``luckiest`` is the lowest mean of any set, which states the smallest alpha, and ``worst`` the
    highest rate elsewhere.
    """
    bound = cache(lambda mean: upper_bound(mean, n, promise.delta, Bound.HOEFFDING_BENTKUS))
    alpha = np.array([bound(round(float(mean), 9)) for mean in means])
    kept = float((elsewhere <= alpha + 1e-12).mean())
    return {
        "resamples": len(means),
        "kept": kept,
        "alpha_mean": float(alpha.mean()),
        "alpha_p90": float(np.quantile(alpha, 0.9)),
        "miss_rate_mean": float(elsewhere.mean()),
        "miss_rate_p90": float(np.quantile(elsewhere, 0.9)),
        "worst": worst,
        "can_fail": worst > bound(round(luckiest, 9)),
    }


def _taken(patients: int) -> int:
    return max(1, round(CALIBRATION_SHARE * patients))
