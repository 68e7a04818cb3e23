"""Probabilities against shares of nodules, what a threshold costs, and misses by the guarantee.

A candidate weighs as in the fit: as many nodules a scan as in whole scans (`weights_of`). So a
probability can be compared with the share of nodules among such candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.accuracy.bootstrap import draw
from imaging.volume import FloatArray
from models.calibration.cases import Cases
from models.calibration.fit import poisson_limit, probabilities, weights_of
from models.calibration.guarantee import losses
from models.calibration.risk_control import upper_bound
from models.runtime.sigmoid import sigmoid

RANGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.7, 0.9, 1.0)
"""Limits of the ranges of probability in which the share of nodules is counted."""

SETS = 1000
"""Calibration sets that are drawn to see how often a guarantee holds."""


@dataclass(frozen=True)
class Settings:
    """What the manifest has of both networks."""

    edge: Mapping[str, Any]
    cloud: Mapping[str, Any]

    def scores(self, cases: Cases) -> dict[str, FloatArray]:
        """Return the probabilities of each reader ``(n,)``."""
        edge, both = probabilities(cases, self.edge, self.cloud)
        slope, bias = self.cloud["calibration"]
        return {"edge": edge, "cloud": sigmoid(slope * cases.cloud + bias), "edge and cloud": both}

    @property
    def limits(self) -> Mapping[str, float]:
        """The thresholds."""
        limits: Mapping[str, float] = self.edge["thresholds"]
        return limits


def reliability(score: FloatArray, cases: Cases) -> list[dict[str, float]]:
    """Return for each of `RANGES` the mean probability, the share of nodules, and the counts."""
    weight = weights_of(cases)
    at = np.clip(np.searchsorted(RANGES, score, "right") - 1, 0, len(RANGES) - 2)
    rows = []
    for number in range(len(RANGES) - 1):
        inside = at == number
        if mass := float(weight[inside].sum()):
            rows.append(
                {
                    "from": RANGES[number],
                    "to": RANGES[number + 1],
                    "mean": float((score * weight)[inside].sum() / mass),
                    "share": float(weight[inside & cases.nodule].sum() / mass),
                    "nodules": int((inside & cases.nodule).sum()),
                    "false": int((inside & ~cases.nodule).sum()),
                }
            )
    return rows


def listed(score: FloatArray, cases: Cases, settings: Settings, least: float) -> dict[str, Any]:
    """Return nodules and false candidates from ``least`` on that the edge does not dismiss."""
    edge = settings.scores(cases)["edge"]
    kept = (score >= least) & ((edge >= settings.limits["dismiss"]) | cases.mass)
    found, false = int((kept & cases.nodule).sum()), int((kept & ~cases.nodule).sum())
    return {
        "threshold": least,
        "found": found,
        "nodules": cases.nodules,
        "sensitivity": found / max(cases.nodules, 1),
        "false": false,
        "scans": cases.scans,
        "false_per_scan": poisson(false, cases.scans),
    }


def curve(score: FloatArray, cases: Cases, settings: Settings) -> dict[str, list[float]]:
    """Return nodules kept (a share) and false findings a scan at every threshold, falling."""
    least = np.unique(score)[::-1]
    points = [listed(score, cases, settings, float(one)) for one in least]
    shown = [one for one in points if one["false"] <= 8 * cases.scans]
    return {
        "false_per_scan": [one["false_per_scan"]["value"] for one in shown],
        "sensitivity": [one["sensitivity"] for one in shown],
    }


def poisson(count: int, scans: int) -> dict[str, float]:
    """Return a rate a scan with its exact 95 % interval (Garwood, Biometrika 28, 1936)."""
    low = poisson_limit(count - 1, 0.025) if count else 0.0
    high = poisson_limit(count, 0.975)
    return {"value": count / scans, "low": low / scans, "high": high / scans}


def changed(cases: Cases, settings: Settings) -> dict[str, int]:
    """Count the findings that verdicts make and take away, of nodules and of false candidates."""
    scores, limit = settings.scores(cases), settings.limits["finding"]
    alone, both = scores["edge"] >= limit, scores["edge and cloud"] >= limit
    return {
        f"{kind}_{what}": int((which & moved).sum())
        for kind, which in (("nodules", cases.nodule), ("false", ~cases.nodule))
        for what, moved in (("added", both & ~alone), ("removed", alone & ~both))
    }


def missed(cases: Cases, settings: Settings) -> dict[str, Any]:
    """Return the miss rates of patients by either list, each with its upper limit."""
    terms = settings.edge["guarantee"]
    shown: dict[str, Any] = {"nodules": cases.nodules}
    for name, shares, limit in zip(
        ("findings", "listed"), losses(cases, settings.edge, settings.cloud),
        (terms["alpha_findings"], terms["alpha"]), strict=True,
    ):  # fmt: skip
        shown["patients"] = len(shares)
        shown[name] = {
            "miss_rate": float(shares.mean()),
            "at_most": upper_bound(shares, terms["delta"] / 2),
            # had the tightest of three bounds been taken, each would get a third of it
            "at_most_of_three": upper_bound(shares, terms["delta"] / 6),
            "guaranteed": limit,
            "within": bool(shares.mean() <= limit),
        }
    return shown


def kept_by_sets(shares: FloatArray, delta: float, rng: np.random.Generator) -> float:
    """Return how often the bound of patients drawn with replacement is at least the true rate.

    All patients stand for the population: their mean loss is the true rate.
    """
    sets = (np.repeat(shares, draw(len(shares), rng).astype(int)) for _ in range(SETS))
    bounds = np.array([upper_bound(one, delta) for one in sets])
    return float((bounds >= shares.mean()).mean())
