"""Whether the guarantee of the miss rate holds: on resampled calibration sets, on other patients.

Two experiments use the same scored nodules. **Splits:** the patients are divided at random, the
thresholds are controlled on one part, and the miss rate is counted on the other. That is what a
hospital would see, including the noise of its few patients. **Draws:** calibration sets of the
same size are drawn with replacement, and the miss rate is that of all patients, who represent the
population. That is what the mathematics guarantees. Sets without a guarantee cannot violate it;
their share is reported separately.

If the sample is too small for the requested level, no set guarantees it and none violates it, which
proves nothing. Two more experiments follow. **Carried:** the requested alpha is replaced by one
that nearly every set of the size of a split can guarantee, and the thresholds are controlled at it.
Nothing is reported without the cloud there, so that the path ends where every nodule is lost;
otherwise its last step might lose less than alpha, and no set could break a guarantee. **Served:**
each set states the tightest alpha of the fitted thresholds, which is compared with the patients
left out, and with the population. The highest possible miss rate is given with each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import draw
from evaluation.accuracy.scores import Scores
from imaging.volume import FloatArray
from models.calibration.guarantee import BOUND
from models.calibration.risk_control import (
    ALPHA,
    DELTA,
    Bound,
    ScoredNodules,
    ThresholdPath,
    control,
    counted,
    furthest,
    losses,
    upper_bound,
    upper_bound_of,
)

MOST = 0.95
"""The share of sets that can guarantee the carried level."""


@dataclass(frozen=True)
class GuaranteeSpec:
    """The guarantee to be reached: its level, its bound, and the path of thresholds."""

    path: ThresholdPath
    report: float
    alpha: float = ALPHA
    delta: float = DELTA
    bound: Bound = Bound.HOEFFDING_BENTKUS


@dataclass(frozen=True, eq=False)
class Resampled:
    """One experiment: which sets gave a guarantee, and the miss rate reached ``(resamples,)``.

    The miss rate is that at the set's thresholds, NaN without a guarantee. ``worst`` is the highest
    possible one, at the least cautious thresholds of the path: if it is within ``alpha``, no set
    can break its guarantee, and ``kept`` proves nothing.
    """

    guaranteed: npt.NDArray[np.bool_]
    miss_rate: FloatArray
    alpha: float
    worst: float

    @property
    def kept(self) -> float:
        """Return the share of all sets in which no guarantee was broken."""
        return float((~self.guaranteed | (self.miss_rate <= self.alpha)).mean())

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; None where no set gave a guarantee."""
        rates = self.miss_rate[self.guaranteed]
        known = rates.size > 0
        return {
            "resamples": self.guaranteed.size,
            "guaranteed": float(self.guaranteed.mean()),
            "kept": self.kept,
            "kept_of_guaranteed": float((rates <= self.alpha).mean()) if known else None,
            "miss_rate_mean": float(rates.mean()) if known else None,
            "miss_rate_p90": float(np.quantile(rates, 0.9)) if known else None,
            "worst": self.worst,
            "can_fail": known and self.worst > self.alpha,
        }


def worst_rest(shares: FloatArray, taken: int) -> float:
    """Return the highest possible mean of ``shares`` after ``taken`` of them are left out."""
    most = np.sort(shares)[taken:]
    return float(most.mean()) if most.size else 0.0


def split_patients(
    nodules: ScoredNodules, spec: GuaranteeSpec, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Calibrate on a random part of the patients and count on the rest, ``resamples`` times."""
    shares = losses(nodules, spec.path, spec.report)
    patients = len(shares)
    taken = _taken(patients)
    # One row a set: 1 for the patients that it calibrates on.
    order = rng.permuted(np.tile(np.arange(patients), (resamples, 1)), axis=1)
    inside = np.zeros((resamples, patients))
    np.put_along_axis(inside, order[:, :taken], 1.0, axis=1)
    rest = (1 - inside) @ shares / max(1, patients - taken)
    return _reached(inside, taken, shares, rest, spec, worst_rest(shares[:, -1], taken))


def draw_patients(
    nodules: ScoredNodules, spec: GuaranteeSpec, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Calibrate on as many patients drawn with replacement, and count on all of them."""
    shares = losses(nodules, spec.path, spec.report)
    weight = np.stack([draw(len(shares), rng) for _ in range(resamples)])
    whole = np.broadcast_to(shares.mean(0), (resamples, shares.shape[1]))
    worst = float(shares[:, -1].mean())
    return _reached(weight, len(shares), shares, whole, spec, worst)


def _reached(
    weight: FloatArray,
    n: int,
    shares: FloatArray,
    elsewhere: FloatArray,
    spec: GuaranteeSpec,
    worst: float,
) -> Resampled:
    """Return what sets of ``n`` patients, each counted ``weight`` times, reach ``elsewhere``."""
    # Each set goes along the path as far as the bound of its own mean loss permits.
    mean = weight @ counted(shares, spec.bound) / n
    step = furthest(mean, n, spec.alpha, spec.delta, spec.bound)
    rate = np.take_along_axis(elsewhere, np.maximum(step, 0)[:, None], axis=1)[:, 0]
    return Resampled(step >= 0, np.where(step >= 0, rate, np.nan), spec.alpha, worst)


def level(
    nodules: ScoredNodules, spec: GuaranteeSpec, at: ThresholdPath, *, holds: bool
) -> dict[str, Any]:
    """Return the miss rate of patients at thresholds found on others, with its upper bound.

    ``miss_rate`` is the mean over patients, which is guaranteed if it ``holds``; ``pooled`` that
    over nodules.
    """
    shares = losses(nodules, at, spec.report)[:, 0]
    each = ScoredNodules(nodules.edge, nodules.merged, np.arange(len(nodules)))
    lost = losses(each, at, spec.report)[:, 0]
    limit = upper_bound_of(shares, spec.delta, BOUND)
    return {
        "nodules": len(nodules),
        "patients": len(shares),
        "lost": int(lost.sum()),
        "miss_rate": float(shares.mean()),
        "miss_rate_upper": limit,
        "pooled": float(lost.mean()),
        "kept": bool(shares.mean() <= spec.alpha) if holds else None,
    }


def cost(scores: Scores, report: float, at: ThresholdPath) -> dict[str, float] | None:
    """Return what the thresholds cost per scan, or None without false candidates."""
    if scores.scans <= 0:
        return None
    edge, merged = scores.false_edge, scores.false_merged
    escalated = (edge >= at.dismiss[0]) & (edge < report)
    listed = (edge >= report) | (escalated & (merged >= at.possible[0]))
    return {
        "escalated_per_scan": float(escalated.sum() / scores.scans),
        "false_in_lists_per_scan": float(listed.sum() / scores.scans),
    }


def examine(
    scores: Scores, test: Scores | None, spec: GuaranteeSpec, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return thresholds and guarantee of ``scores``, both experiments, the level on ``test``."""
    rng, nodules = np.random.default_rng(seed), scores.nodules
    found = control(
        nodules, spec.path, report=spec.report, alpha=spec.alpha, delta=spec.delta, bound=spec.bound
    )
    given = found.guarantee
    at = ThresholdPath(np.array([found.dismiss]), np.array([found.possible]))
    return {
        "alpha": given.alpha,
        "delta": given.delta,
        "bound": spec.bound.value,
        "nodules": given.n,
        "patients": given.patients,
        "patients_known": scores.patients_known,
        "calibration_id": given.calibration_id,
        "holds": given.holds,
        "guarantee": given.text,
        "thresholds": {"dismiss": found.dismiss, "possible": found.possible, "report": spec.report},
        "alpha_reached": found.alpha_reached,
        "delta_reached": found.delta_reached,
        "cost": cost(scores, spec.report, at),
        "calibration": level(nodules, spec, at, holds=given.holds),
        "splits": split_patients(nodules, spec, resamples, rng).as_dict(),
        "draws": draw_patients(nodules, spec, resamples, rng).as_dict(),
        "test": None if test is None else level(test.nodules, spec, at, holds=given.holds),
    }


def carried(
    nodules: ScoredNodules, spec: GuaranteeSpec, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Run both experiments at the smallest alpha, in whole percent, that the sample carries."""
    # no score is above it, so nothing is reported without the cloud
    uncut = replace(spec, report=2.0)
    alpha = max(spec.alpha, carried_alpha(nodules, uncut, resamples, rng))
    at = replace(uncut, alpha=alpha)
    return {
        "alpha": alpha,
        "delta": spec.delta,
        "splits": split_patients(nodules, at, resamples, rng).as_dict(),
        "draws": draw_patients(nodules, at, resamples, rng).as_dict(),
    }


def carried_alpha(
    nodules: ScoredNodules, spec: GuaranteeSpec, resamples: int, rng: np.random.Generator
) -> float:
    """Return the alpha that `MOST` of the sets can guarantee with the most cautious thresholds."""
    shares = counted(losses(nodules, spec.path, spec.report)[:, :1], spec.bound)[:, 0]
    taken = _taken(len(shares))
    means = [float(rng.permutation(shares)[:taken].mean()) for _ in range(resamples)]
    worst = float(np.quantile(means, MOST, method="higher"))
    return math.ceil(100 * upper_bound(worst, taken, spec.delta, spec.bound)) / 100


def served(
    scores: Scores,
    test: Scores | None,
    spec: GuaranteeSpec,
    settings: Mapping[str, Any],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Examine the guarantee of the fitted thresholds: on resampled sets, and on ``test`` patients.

    ``settings`` has ``thresholds`` and ``guarantee`` as `models.calibration.guarantee` gives them.
    """
    fitted = settings["thresholds"]
    at = ThresholdPath(np.array([fitted["dismiss"]]), np.array([fitted["possible"]]))
    shares = losses(scores.nodules, at, fitted["report"])[:, 0]
    spec = replace(spec, alpha=settings["guarantee"]["alpha"])
    n, taken = len(shares), _taken(len(shares))
    # each half of the patients against the other half, then each set drawn against all of them
    orders = np.array([rng.permutation(shares) for _ in range(resamples)])
    drawn = rng.choice(shares, (resamples, n))
    inside, rest = orders[:, :taken], orders[:, taken:].mean(1)
    luckiest, least = np.sort(shares)[:taken], np.full(n, shares.min())
    whole = float(shares.mean())
    return {
        **settings,
        "cost": cost(scores, spec.report, at),
        "calibration": level(scores.nodules, spec, at, holds=True),
        "splits": _stated(inside, spec.delta, rest, luckiest, worst_rest(shares, taken)),
        "draws": _stated(drawn, spec.delta, np.full(resamples, whole), least, whole),
        "test": None if test is None else level(test.nodules, spec, at, holds=True),
    }


def _stated(
    sets: FloatArray, delta: float, elsewhere: FloatArray, luckiest: FloatArray, worst: float
) -> dict[str, Any]:
    """Compare the alphas that sets of losses ``(sets, n)`` state with the rates ``elsewhere``."""
    alpha = np.array([upper_bound_of(one, delta, BOUND) for one in sets])
    kept = float((elsewhere <= alpha + 1e-12).mean())
    return {
        "resamples": len(sets),
        "kept": kept,
        "alpha_mean": float(alpha.mean()),
        "alpha_p90": float(np.quantile(alpha, 0.9)),
        "miss_rate_mean": float(elsewhere.mean()),
        "miss_rate_p90": float(np.quantile(elsewhere, 0.9)),
        "worst": worst,
        # the luckiest set, that of the lowest mean, states the smallest alpha; worst is the highest
        # rate elsewhere
        "can_fail": worst > upper_bound_of(luckiest, delta, BOUND),
    }


def _taken(patients: int) -> int:
    """Return the number of patients that a split calibrates on: half of them."""
    return max(1, round(patients / 2))
