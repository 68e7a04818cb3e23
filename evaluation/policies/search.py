"""The choice of thresholds, on studies where every answer arrives.

One rule holds for all policies: of the choices that find as much as the aim with no more false
positives, take the one that escalates least; if there is none, the one that finds most within the
false positives. Nothing changes while a threshold moves between two neighbouring scores. So the
midpoints between them, one value below and one above all scores, are all thresholds there are, and
the search is exact. Ties go to the middle of the widest range.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
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
from evaluation.policies.studies import Study, real_scans
from imaging.volume import FloatArray

IntArray = npt.NDArray[np.int64]

NO_TOP = 1.01
"""A threshold above every score: the upper one of a single threshold."""


@dataclass(frozen=True)
class Reached:
    """The figures of a routing where every answer arrives.

    False positives are those of a real scan, ROIs those of any study.
    """

    sensitivity: float
    false_positives_per_scan: float
    rois_per_scan: float

    def fulfils(self, aim: "Reached") -> bool:
        """Return whether it finds as much as the aim with no more false positives."""
        return (
            self.sensitivity >= aim.sensitivity
            and self.false_positives_per_scan <= aim.false_positives_per_scan
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """A routing with its chosen thresholds, and its figures where they were fitted."""

    routing: Routing
    settings: dict[str, float]
    reached: Reached

    def as_dict(self, aim: Reached) -> dict[str, Any]:
        """Return thresholds and figures for JSON."""
        fitted = asdict(self.reached) | {"fulfils": self.reached.fulfils(aim)}
        return {"settings": self.settings, "fitted": fitted}


def reach(routing: Routing, studies: Sequence[Study], final: float) -> Reached:
    """Return the figures of the routing if every ROI is answered in full size."""
    found = false = escalated = 0
    for study in studies:
        routes = routing(study)
        findings = np.flatnonzero(routes.reported | (routes.escalated & (study.merged >= final)))
        found += len(study.found(findings.tolist()))
        false += study.false(findings.tolist())
        escalated += int(routes.escalated.sum())
    nodules = sum(len(study.nodules) for study in studies)
    return Reached(found / max(nodules, 1), false / real_scans(studies), escalated / len(studies))


def _best(
    allowed: BoolArray, sensitivity: FloatArray, false: FloatArray, rois: FloatArray, aim: Reached
) -> BoolArray:
    """Select the best of the ``allowed`` choices by the rule, with all ties; shapes are equal."""
    quiet = allowed & (false <= aim.false_positives_per_scan)
    pool = quiet & (sensitivity >= aim.sensitivity)
    if not pool.any():
        pool = quiet if quiet.any() else allowed
        pool = pool & (sensitivity == sensitivity[pool].max())
    return np.asarray(pool & (rois == rois[pool].min()), bool)


def best(choices: Iterable[Choice], aim: Reached) -> Choice:
    """Return the first of the best choices."""
    every = list(choices)
    sensitivity, false, rois = np.array([astuple(one.reached) for one in every]).T
    return every[int(np.argmax(_best(np.ones(len(every), bool), sensitivity, false, rois, aim)))]


def filters(studies: Sequence[Study], final: float, alone: float) -> dict[str, list[Choice]]:
    """Return Sedna's filters at every threshold that makes a difference."""
    means = np.array([study.scores.mean() for study in studies if study.scores.size])
    sure = certainty(np.concatenate([study.scores for study in studies]))
    tried = {"threshold": (threshold_filter, means), "entropy": (entropy_filter, sure)}
    choices: dict[str, list[Choice]] = {}
    for name, (make, values) in tried.items():
        found = np.unique(values)
        between = [0.0, *((found[:-1] + found[1:]) / 2).tolist(), NO_TOP]
        choices[name] = [
            Choice(make(t, alone), {"threshold": t}, reach(make(t, alone), studies, final))
            for t in between
        ]
    return choices


@dataclass(frozen=True, eq=False)
class Search:
    """The figures of all pairs of thresholds if every ROI is answered in full size.

    A candidate is a finding from the merged probability ``final`` on. ``bounds`` are 0, the rising
    scores, and `NO_TOP`; a threshold lies between neighbours. The figures are ``(lower, upper
    thresholds)``, those of `Reached`; a lower threshold above the upper one means nothing.
    """

    studies: tuple[Study, ...]
    final: float
    bounds: FloatArray
    sensitivity: FloatArray
    false: FloatArray
    escalated: FloatArray

    @cached_property
    def ends(self) -> FloatArray:
        """Return the thresholds: the midpoints, and `NO_TOP` itself."""
        return np.append((self.bounds[:-2] + self.bounds[1:-1]) / 2, NO_TOP)

    def single(self, aim: Reached) -> Choice:
        """Choose a single threshold, from which everything is escalated."""
        allowed = np.zeros(self.escalated.shape, bool)
        allowed[:, -1] = True
        lows, _ = np.nonzero(self._tied(allowed, aim))
        return self._single(self._middle(lows))

    def pair(self, aim: Reached) -> Choice:
        """Choose two thresholds: escalate what lies between, at least one, and report above.

        A threshold that crosses a score escalates one candidate more or less, so ties are apart.
        """
        lows, highs = np.nonzero(self._tied(self.escalated > 0, aim))
        half = np.append(np.diff(self.bounds)[:-1] / 2, np.inf)
        widest = int(np.argmax(np.minimum(half[lows], half[highs])))
        low, high = float(self.ends[lows[widest]]), float(self.ends[highs[widest]])
        return self._choice(band(low, high), low=low, high=high)

    def cut(self, aim: Reached) -> Choice:
        """Choose a single threshold on the edge's score, without escalating anything."""
        cuts, _ = np.nonzero(self._tied(np.eye(len(self.escalated), dtype=bool), aim))
        cut = self._middle(cuts)
        return self._choice(edge_only(cut), threshold=cut)

    def dominating(self, of: Reached) -> int:
        """Count the pairs that find as much with no more false positives, and escalate less.

        One that escalates nothing is no pair, but a cut.
        """
        as_good = (self.sensitivity >= of.sensitivity) & (self.false <= of.false_positives_per_scan)
        less = (self.escalated > 0) & (self.escalated < of.rois_per_scan)
        return int(np.triu(as_good & less).sum())

    def sweep(self, top: float, count: int) -> list[Choice]:
        """Return at most ``count`` single thresholds, from below all scores up to ``top``."""
        below = self.ends[self.ends < top]
        chosen = np.linspace(0, len(below) - 1, min(count, len(below))).round().astype(int)
        return [self._single(float(low)) for low in below[chosen]]

    def _single(self, low: float) -> Choice:
        return self._choice(band(low, NO_TOP), threshold=low)

    def _choice(self, routing: Routing, **settings: float) -> Choice:
        return Choice(routing, settings, reach(routing, self.studies, self.final))

    def _tied(self, allowed: BoolArray, aim: Reached) -> BoolArray:
        return _best(allowed, self.sensitivity, self.false, self.escalated, aim)

    def _middle(self, ends: IntArray) -> float:
        """Return the middle of the widest run of neighbouring thresholds."""
        runs = np.split(ends, np.flatnonzero(np.diff(ends) > 1) + 1)
        spans = [(self.bounds[run[0]], self.bounds[run[-1] + 1]) for run in runs]
        low, high = max(spans, key=lambda span: span[1] - span[0])
        return float(low + high) / 2


def search(studies: Sequence[Study], final: float) -> Search:
    """Count all pairs of thresholds at once, by ranks of scores.

    Raises:
        EvaluationError: the studies have no candidate.
    """
    all_scores = np.concatenate([study.scores for study in studies])
    scores = np.unique(all_scores)
    if not scores.size:
        raise EvaluationError(
            f"{len(studies)} studies without a candidate: no threshold can be chosen"
        )
    ends = np.arange(scores.size + 1)
    ranks = np.searchsorted(scores, all_scores)
    merged = np.concatenate([study.merged for study in studies]) >= final
    false = np.concatenate([study.is_false for study in studies])
    false_positives = _from(ranks[false], ends)[None, :] + _between(ranks[false & merged], ends)
    best_rank, best_merged_rank = _nodules(studies, scores, final)
    # a nodule is missed if none of its candidates reaches the upper threshold, and none that the
    # merged score makes a finding reaches the lower one
    below_high = (best_rank[:, None] < ends).astype(np.float64)
    below_low = (best_merged_rank[:, None] < ends).astype(np.float64)
    nodules = sum(len(study.nodules) for study in studies)
    return Search(
        studies=tuple(studies),
        final=final,
        bounds=np.concatenate([[0.0], scores, [NO_TOP]]),
        sensitivity=(best_rank.size - below_low.T @ below_high) / max(nodules, 1),
        false=false_positives / real_scans(studies),
        escalated=_between(ranks, ends) / len(studies),
    )


def _nodules(
    studies: Sequence[Study], scores: FloatArray, final: float
) -> tuple[IntArray, IntArray]:
    """Return the highest rank of each proposed nodule, and of its findings; -1 for none."""
    ranks: dict[tuple[int, str], tuple[int, int]] = {}
    for number, study in enumerate(studies):
        places = np.searchsorted(scores, study.scores).tolist()
        for one, rank, merged in zip(study.sightings, places, study.merged, strict=True):
            if one.nodule:
                best, found = ranks.get((number, one.nodule), (-1, -1))
                found = max(found, rank) if merged >= final else found
                ranks[number, one.nodule] = (max(best, rank), found)
    pairs = np.array(list(ranks.values()), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _from(ranks: IntArray, ends: IntArray) -> IntArray:
    """Count the ranks at each threshold or above it."""
    return ranks.size - np.searchsorted(np.sort(ranks), ends)


def _between(ranks: IntArray, ends: IntArray) -> IntArray:
    """Count the ranks from each lower threshold to below each upper one, ``(lower, upper)``."""
    above = _from(ranks, ends)
    return above[:, None] - above[None, :]
