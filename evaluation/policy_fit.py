"""Chooses what a policy leaves open, on studies with a link that brings every answer.

One rule for all: of the choices that find as much as is aimed at, with no more false alarms, the
one that asks least; where none does, the one that finds most within the false alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.policy_routes import Routing, band, entropy_filter, threshold_filter
from evaluation.policy_studies import Study
from imaging.volume import FloatArray

LOWS, HIGHS = 48, 24
"""Bands that are tried: so many lower and upper ends, at quantiles of the scores."""

NO_TOP = 1.01
"""An upper end above every score: a single threshold, everything from it on is asked about."""


@dataclass(frozen=True)
class Reached:
    """What a routing comes to where every answer arrives."""

    sensitivity: float
    false_per_scan: float
    rois_per_scan: float

    def as_json(self) -> dict[str, float]:
        """For machines."""
        return {
            "sensitivity": self.sensitivity,
            "false_positives_per_scan": self.false_per_scan,
            "rois_per_scan": self.rois_per_scan,
        }

    def fulfils(self, aim: Reached) -> bool:
        """Whether it finds as much with no more false alarms."""
        return self.sensitivity >= aim.sensitivity and self.false_per_scan <= aim.false_per_scan


@dataclass(frozen=True, eq=False)
class Choice:
    """A routing with what was chosen for it, and what it reached where it was fitted."""

    routing: Routing
    settings: dict[str, float]
    reached: Reached

    def as_json(self, aim: Reached) -> dict[str, Any]:
        """For machines."""
        told = self.reached.as_json() | {"fulfils": self.reached.fulfils(aim)}
        return {"settings": self.settings, "fitted": told}


def reach(routing: Routing, studies: Sequence[Study], final: float) -> Reached:
    """What the routing comes to where every region is read in full."""
    found = false = asked = 0
    for study in studies:
        routes = routing(study)
        places = np.flatnonzero(routes.reported | (routes.asked & (study.merged >= final)))
        found += len(study.found(places.tolist()))
        false += study.false(places.tolist())
        asked += int(routes.asked.sum())
    nodules = sum(len(study.nodules) for study in studies)
    return Reached(found / max(nodules, 1), false / len(studies), asked / len(studies))


def best(choices: Iterable[Choice], aim: Reached) -> Choice:
    """The one that asks least of those that fulfil the aim, else the nearest to it."""
    every = list(choices)
    if able := [one for one in every if one.reached.fulfils(aim)]:
        return min(able, key=lambda one: one.reached.rois_per_scan)
    quiet = [one for one in every if one.reached.false_per_scan <= aim.false_per_scan]
    return max(quiet or every, key=lambda one: _rank(one.reached))


def sweep(tried: Sequence[Choice], chosen: Choice, count: int) -> list[Choice]:
    """At most so many of the bands that end above where the chosen one does, by their lower end."""
    alike = [one for one in tried if one.settings["high"] == chosen.settings["high"]]
    alike.sort(key=lambda one: one.settings["low"])
    places = np.linspace(0, len(alike) - 1, min(count, len(alike))).round().astype(int)
    return [alike[place] for place in places]


def bands(studies: Sequence[Study], final: float) -> list[Choice]:
    """Every band that is tried."""
    scores = np.concatenate([study.scores for study in studies])
    highs = [*_quantiles(scores[scores >= np.median(scores)], HIGHS), NO_TOP]
    pairs = [(low, high) for low in _quantiles(scores, LOWS) for high in highs if low <= high]
    return [
        Choice(band(*pair), {"low": pair[0], "high": pair[1]}, reach(band(*pair), studies, final))
        for pair in pairs
    ]


def filters(studies: Sequence[Study], final: float, alone: float) -> dict[str, list[Choice]]:
    """Sedna's filters at every threshold that is tried."""
    means = np.array([study.scores.mean() for study in studies if study.scores.size])
    tried = {
        "threshold": (threshold_filter, [*_quantiles(means, LOWS), NO_TOP]),
        "entropy": (entropy_filter, np.linspace(0, 1, LOWS + 1).tolist()),
    }
    return {
        name: [
            Choice(make(t, alone), {"threshold": t}, reach(make(t, alone), studies, final))
            for t in thresholds
        ]
        for name, (make, thresholds) in tried.items()
    }


def _rank(reached: Reached) -> tuple[float, float]:
    return reached.sensitivity, -reached.rois_per_scan


def _quantiles(values: FloatArray, count: int) -> list[float]:
    return sorted({float(v) for v in np.quantile(values, np.linspace(0, 1, count))})
