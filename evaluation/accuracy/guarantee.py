"""Is the promise kept? Calibration sets drawn again and again, and patients never calibrated on.

Two experiments on the same scored nodules. **Splits:** the patients are parted at random, the
thresholds are controlled on one part, and the miss rate is counted on the other: what a hospital
would see, the noise of its own few patients included. **Draws:** calibration sets of the same
size are drawn with replacement, and the miss rate is that of all patients, who stand for the
population: what the mathematics promises. A set that gives no guarantee breaks none; how many do
is a figure of its own.

What the sample can carry: the promise that is served, and whether it is kept.

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
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import draw
from evaluation.accuracy.scores import Scores
from imaging.volume import FloatArray
from models.calibration.risk_control import (
    ALPHA,
    DELTA,
    Bound,
    Controlled,
    Guarantee,
    ScoredNodules,
    ThresholdPath,
    control,
    counted,
    furthest,
    losses,
    upper_bound,
)

CALIBRATION_SHARE = 0.5
"""The part of the patients that a split calibrates on."""


@dataclass(frozen=True)
class Promise:
    """What is to be promised, and how: along which path, with which bound."""

    path: ThresholdPath
    report: float
    alpha: float = ALPHA
    delta: float = DELTA
    bound: Bound = Bound.HOEFFDING_BENTKUS

    def control(self, nodules: ScoredNodules) -> Controlled:
        """The thresholds that these nodules allow."""
        return control(
            nodules, self.path, report=self.report, alpha=self.alpha, delta=self.delta,
            bound=self.bound,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Resampled:
    """One experiment: which sets gave a guarantee, and the miss rate reached ``(resamples,)``.

    The miss rate is that at the set's thresholds, NaN where there was no guarantee. ``worst`` is
    the highest that any set could have had, at the least cautious thresholds that can be tried:
    where even that is within ``alpha`` no set can break its promise, and ``kept`` says nothing.
    """

    promised: npt.NDArray[np.bool_]
    miss_rate: FloatArray
    alpha: float
    worst: float

    @property
    def kept(self) -> float:
        """The share of all sets in which no guarantee was broken."""
        return float((~self.promised | (self.miss_rate <= self.alpha)).mean())

    def as_dict(self) -> dict[str, Any]:
        """For machines; None where no set gave a guarantee."""
        rates = self.miss_rate[self.promised]
        told = rates.size > 0
        return {
            "resamples": self.promised.size,
            "promised": float(self.promised.mean()),
            "kept": self.kept,
            "kept_of_promised": float((rates <= self.alpha).mean()) if told else None,
            "miss_rate_mean": float(rates.mean()) if told else None,
            "miss_rate_p90": float(np.quantile(rates, 0.9)) if told else None,
            "worst": self.worst,
            "can_fail": told and self.worst > self.alpha,
        }


def worst_rest(shares: FloatArray, taken: int) -> float:
    """The highest miss rate of the patients left out, if ``taken`` of ``shares`` are not."""
    most = np.sort(shares)[taken:]
    return float(most.mean()) if most.size else 0.0


def split_patients(
    nodules: ScoredNodules, promise: Promise, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Calibrates on a random part of the patients and counts on the rest, again and again."""
    shares = losses(nodules, promise.path, promise.report)
    patients = len(shares)
    taken = max(1, round(CALIBRATION_SHARE * patients))
    order = rng.permuted(np.tile(np.arange(patients), (resamples, 1)), axis=1)
    inside = np.zeros((resamples, patients))
    np.put_along_axis(inside, order[:, :taken], 1.0, axis=1)
    rest = (1 - inside) @ shares / max(1, patients - taken)
    return _reached(inside, taken, shares, rest, promise, worst_rest(shares[:, -1], taken))


def draw_patients(
    nodules: ScoredNodules, promise: Promise, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Calibrates on as many patients drawn with replacement, and counts on them all."""
    shares = losses(nodules, promise.path, promise.report)
    weight = np.stack([draw(len(shares), rng) for _ in range(resamples)])
    whole = np.broadcast_to(shares.mean(0), (resamples, shares.shape[1]))
    worst = float(shares[:, -1].mean())
    return _reached(weight, len(shares), shares, whole, promise, worst)


def _reached(
    weight: FloatArray,
    n: int,
    shares: FloatArray,
    elsewhere: FloatArray,
    promise: Promise,
    worst: float,
) -> Resampled:
    """What sets of ``n`` patients, each taken ``weight`` times, come to on others."""
    mean = weight @ counted(shares, promise.bound) / n
    step = furthest(mean, n, promise.alpha, promise.delta, promise.bound)
    rate = np.take_along_axis(elsewhere, np.maximum(step, 0)[:, None], axis=1)[:, 0]
    return Resampled(step >= 0, np.where(step >= 0, rate, np.nan), promise.alpha, worst)


def level(nodules: ScoredNodules, promise: Promise, found: Controlled) -> dict[str, Any]:
    """The miss rate of patients at thresholds found on others, with its own upper bound.

    ``miss_rate`` is the mean over patients, which is promised; ``pooled`` that over nodules.
    """
    one = ThresholdPath(np.array([found.dismiss]), np.array([found.final]))
    shares = losses(nodules, one, promise.report)[:, 0]
    each = ScoredNodules(nodules.edge, nodules.merged, np.arange(len(nodules)))
    lost = losses(each, one, promise.report)[:, 0]
    limit = upper_bound(shares.mean(), len(shares), promise.delta, Bound.HOEFFDING_BENTKUS)
    return {
        "nodules": len(nodules),
        "patients": len(shares),
        "lost": int(lost.sum()),
        "miss_rate": float(shares.mean()),
        "miss_rate_upper": limit,
        "pooled": float(lost.mean()),
        "kept": bool(shares.mean() <= promise.alpha) if found.guarantee.holds else None,
    }


def cost(scores: Scores, promise: Promise, found: Controlled) -> dict[str, float] | None:
    """What the thresholds cost a scan, or None where no false alarms were read."""
    if scores.scans <= 0:
        return None
    edge, merged = scores.alarms_edge, scores.alarms_merged
    asked = (edge >= found.dismiss) & (edge < promise.report)
    false = (edge >= promise.report) | (asked & (merged >= found.final))
    return {
        "escalated_per_scan": float(asked.sum() / scores.scans),
        "false_positives_per_scan": float(false.sum() / scores.scans),
    }


def examine(
    scores: Scores, test: Scores | None, promise: Promise, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Thresholds and guarantee of ``scores``, both experiments, and the level on ``test``."""
    rng = np.random.default_rng(seed)
    found = promise.control(scores.nodules)
    given = found.guarantee
    return {
        "alpha": given.alpha,
        "delta": given.delta,
        "bound": promise.bound.value,
        "nodules": given.n,
        "patients": given.patients,
        "patients_known": scores.owned,
        "calibration_id": given.calibration_id,
        "holds": given.holds,
        "guarantee": given.text,
        "thresholds": {"dismiss": found.dismiss, "final": found.final, "report": promise.report},
        "alpha_reached": found.alpha_reached,
        "delta_reached": found.delta_reached,
        "cost": cost(scores, promise, found),
        "calibration": level(scores.nodules, promise, found),
        "splits": split_patients(scores.nodules, promise, resamples, rng).as_dict(),
        "draws": draw_patients(scores.nodules, promise, resamples, rng).as_dict(),
        "test": None if test is None else level(test.nodules, promise, found),
    }


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
        "splits": split_patients(nodules, at, resamples, rng).as_dict(),
        "draws": draw_patients(nodules, at, resamples, rng).as_dict(),
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
