"""The exact search for fixed thresholds: every end between neighbouring scores of the studies.

Nothing changes while an end moves between two neighbouring scores, so that the midpoints between
them, with one end below and one above all scores, are all the ends there are.

Of those that fulfil the aim the one that asks least is chosen. Ties go to the widest margin: to
the middle of the range within which the ends may move and nothing of that changes.

The rule by which what a policy leaves open is chosen, on studies where every answer arrives.

One rule for all: of the choices that find as much as is aimed at, with no more false alarms, the
one that asks least; where none does, the one that finds most within the false alarms. Thresholds
are tried at every midpoint between neighbouring values, so that the choice is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.errors import EvaluationError
from evaluation.policies.routing import (
    BoolArray,
    Routing,
    band,
    certainty,
    edge_only,
    entropy_filter,
    threshold_filter,
)
from evaluation.policies.studies import Study
from imaging.volume import FloatArray

NO_TOP = 1.01
"""An end above every score: of two ends the upper one of a single threshold."""


@dataclass(frozen=True)
class Reached:
    """What a routing comes to where every answer arrives."""

    sensitivity: float
    false_per_scan: float
    rois_per_scan: float

    def as_dict(self) -> dict[str, float]:
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

    def as_dict(self, aim: Reached) -> dict[str, Any]:
        """For machines."""
        told = self.reached.as_dict() | {"fulfils": self.reached.fulfils(aim)}
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


IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Search:
    """What every two ends come to on these studies, where every region is read in full.

    Attributes:
        studies: fitted on.
        final: from it on a merged probability is a finding.
        bounds: 0, the scores by rising value, and `NO_TOP`; an end lies between two neighbours.
        sensitivity, false, asked: ``(lower ends, upper ends)``, false alarms and regions a scan;
            a lower end above the upper one means nothing.
    """

    studies: tuple[Study, ...]
    final: float
    bounds: FloatArray
    sensitivity: FloatArray
    false: FloatArray
    asked: FloatArray

    @cached_property
    def ends(self) -> FloatArray:
        """The midpoints; the last is `NO_TOP` itself."""
        return np.append((self.bounds[:-2] + self.bounds[1:-1]) / 2, NO_TOP)

    def single(self, aim: Reached) -> Choice:
        """A single threshold: everything from it on is asked about."""
        allowed = np.zeros(self.asked.shape, bool)
        allowed[:, -1] = True
        lows, _ = np.nonzero(self._tied(allowed, aim))
        return self._single(self._middle(lows))

    def pair(self, aim: Reached) -> Choice:
        """Two ends: asked about is what lies between, something at least; reported what is above.

        An end that moves across a score asks one more or one less, so that ties never touch.
        """
        lows, highs = np.nonzero(self._tied(self.asked > 0, aim))
        half = np.append(np.diff(self.bounds)[:-1] / 2, np.inf)
        place = int(np.argmax(np.minimum(half[lows], half[highs])))
        low, high = float(self.ends[lows[place]]), float(self.ends[highs[place]])
        reached = reach(band(low, high), self.studies, self.final)
        return Choice(band(low, high), {"low": low, "high": high}, reached)

    def cut(self, aim: Reached) -> Choice:
        """A single cut on the edge's own score: nothing is asked about."""
        places, _ = np.nonzero(self._tied(np.eye(len(self.asked), dtype=bool), aim))
        cut = self._middle(places)
        reached = reach(edge_only(cut), self.studies, self.final)
        return Choice(edge_only(cut), {"threshold": cut}, reached)

    def sweep(self, top: float, count: int) -> list[Choice]:
        """At most so many single thresholds, from below all scores up to ``top``."""
        below = self.ends[self.ends < top]
        places = np.linspace(0, len(below) - 1, min(count, len(below))).round().astype(int)
        return [self._single(float(below[place])) for place in places]

    def _single(self, low: float) -> Choice:
        reached = reach(band(low, NO_TOP), self.studies, self.final)
        return Choice(band(low, NO_TOP), {"threshold": low}, reached)

    def _tied(self, allowed: BoolArray, aim: Reached) -> BoolArray:
        """Those that are best by the rule of `policy_fit.best`."""
        quiet = allowed & (self.false <= aim.false_per_scan)
        pool = quiet & (self.sensitivity >= aim.sensitivity)
        if not pool.any():
            pool = quiet if quiet.any() else allowed
            pool = pool & (self.sensitivity == self.sensitivity[pool].max())
        return np.asarray(pool & (self.asked == self.asked[pool].min()), bool)

    def _middle(self, places: IntArray) -> float:
        """The middle of the widest run of neighbouring ends."""
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        spans = [(self.bounds[run[0]], self.bounds[run[-1] + 1]) for run in runs]
        low, high = max(spans, key=lambda span: span[1] - span[0])
        return float(low + high) / 2


def search(studies: Sequence[Study], final: float) -> Search:
    """Every two ends, in one go: counts over ranks of scores instead of pass after pass.

    Raises:
        EvaluationError: the studies have no candidate.
    """
    scores = np.unique(np.concatenate([study.scores for study in studies]))
    if not scores.size:
        raise EvaluationError(f"{len(studies)} studies without a candidate: nothing to choose by")
    ends = np.arange(scores.size + 1)
    ranks, merged, false = _candidates(studies, scores, final)
    asked = _ranks_between(ranks, ends)
    alarms = _from(ranks[false], ends)[None, :] + _ranks_between(ranks[false & merged], ends)
    best, best_merged = _nodules(studies, scores, final)
    # Missed is a nodule of which nothing reaches the upper end, and nothing that the merger
    # takes for a finding the lower one.
    under = (best[:, None] < ends).astype(np.float64)
    unasked = (best_merged[:, None] < ends).astype(np.float64)
    nodules = sum(len(study.nodules) for study in studies)
    proposed = best.size
    return Search(
        studies=tuple(studies),
        final=final,
        bounds=np.concatenate([[0.0], scores, [NO_TOP]]),
        sensitivity=(proposed - unasked.T @ under) / max(nodules, 1),
        false=alarms / len(studies),
        asked=asked / len(studies),
    )


def _candidates(
    studies: Sequence[Study], scores: FloatArray, final: float
) -> tuple[IntArray, BoolArray, BoolArray]:
    """Of each candidate the rank of its score, whether the merger finds it, whether it is false."""
    ranks = np.searchsorted(scores, np.concatenate([study.scores for study in studies]))
    merged = np.concatenate([study.merged for study in studies]) >= final
    sightings = (one for study in studies for one in study.sightings)
    false = np.array([not one.nodule and not one.ignored for one in sightings], bool)
    return np.asarray(ranks, np.int64), merged, false


def _nodules(
    studies: Sequence[Study], scores: FloatArray, final: float
) -> tuple[IntArray, IntArray]:
    """Of each proposed nodule the highest rank, and that of what the merger finds; -1 for none."""
    ranks: dict[tuple[int, str], tuple[int, int]] = {}
    for number, study in enumerate(studies):
        places = np.searchsorted(scores, study.scores).tolist()
        for one, place, merged in zip(study.sightings, places, study.merged, strict=True):
            if one.nodule:
                best, found = ranks.get((number, one.nodule), (-1, -1))
                found = max(found, place) if merged >= final else found
                ranks[number, one.nodule] = (max(best, place), found)
    pairs = np.array(list(ranks.values()), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _from(ranks: IntArray, ends: IntArray) -> IntArray:
    """How many lie at each end or above it."""
    return ranks.size - np.searchsorted(np.sort(ranks), ends)


def _ranks_between(ranks: IntArray, ends: IntArray) -> IntArray:
    """How many lie from each lower end to below each upper one, ``(lower, upper)``."""
    above = _from(ranks, ends)
    return above[:, None] - above[None, :]
