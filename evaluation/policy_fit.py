"""The rule by which what a policy leaves open is chosen, on studies where every answer arrives.

One rule for all: of the choices that find as much as is aimed at, with no more false alarms, the
one that asks least; where none does, the one that finds most within the false alarms. Thresholds
are tried at every midpoint between neighbouring values, so that the choice is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.policy_routes import Routing, certainty, entropy_filter, threshold_filter
from evaluation.policy_studies import Study
from imaging.volume import FloatArray

NO_TOP = 1.01
"""An end above every score: of two ends the upper one of a single threshold."""


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


def filters(studies: Sequence[Study], final: float, alone: float) -> dict[str, list[Choice]]:
    """Sedna's filters at every threshold that makes a difference."""
    means = np.array([study.scores.mean() for study in studies if study.scores.size])
    sure = certainty(np.concatenate([study.scores for study in studies]))
    tried = {"threshold": (threshold_filter, means), "entropy": (entropy_filter, sure)}
    return {
        name: [
            Choice(make(t, alone), {"threshold": t}, reach(make(t, alone), studies, final))
            for t in _between(values)
        ]
        for name, (make, values) in tried.items()
    }


def _rank(reached: Reached) -> tuple[float, float]:
    return reached.sensitivity, -reached.rois_per_scan


def _between(values: FloatArray) -> list[float]:
    """Below all values, midway between each two neighbours, and above all."""
    found = np.unique(values)
    return [0.0, *((found[:-1] + found[1:]) / 2).tolist(), NO_TOP]
