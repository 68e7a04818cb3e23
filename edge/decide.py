"""Chooses: which candidate is dismissed, reported, or worth a second reading, and in what order.

A pure function of what it is given, so that a day of decisions can be replayed offline. It
knows nothing of the network, the clock or the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.errors import UnfitModel
from edge.finding import Decision, Route
from edge.link import LinkEstimate
from models.runtime.detection import Candidate


@dataclass(frozen=True)
class Thresholds:
    """Where the routes part, on calibrated scores.

    Attributes:
        dismiss: below it the edge dismisses.
        report: from it on the edge reports without asking.
        alone: from it on a candidate is a finding when its second reading is missing.
        final: from it on a merged probability is a finding.
    """

    dismiss: float
    report: float
    alone: float
    final: float

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> Thresholds:
        """The thresholds that were fitted with the model.

        Raises:
            UnfitModel: one is missing, no number, or ``dismiss`` lies above ``report``.
        """
        given = settings.get("thresholds")
        if not isinstance(given, Mapping):
            raise UnfitModel(f"thresholds = {given!r}: the manifest must give a table of four")
        values = {name: _number(given, name) for name in ("dismiss", "report", "alone", "final")}
        if values["dismiss"] > values["report"]:
            raise UnfitModel(f"thresholds: dismiss {values['dismiss']} above {values['report']}")
        return cls(**values)


@dataclass(frozen=True)
class Plan:
    """All candidates with their routes, and which are sent.

    ``send`` holds places in ``decisions`` (they are the ROI identifiers on the wire), the most
    valuable first. ``held_back`` says why the other uncertain ones are not among them.
    """

    decisions: tuple[Decision, ...]
    send: tuple[int, ...] = ()
    held_back: str = ""

    @property
    def uncertain(self) -> tuple[int, ...]:
        """The places of all candidates that want a second reading."""
        return tuple(i for i, d in enumerate(self.decisions) if d.route is Route.ESCALATE)


def decide(
    candidates: Sequence[Candidate],
    thresholds: Thresholds,
    link: LinkEstimate,
    *,
    budget_s: float,
    roi_bytes: int,
    max_rois: int,
) -> Plan:
    """The plan for one study.

    Args:
        candidates: of the screening network.
        thresholds: from the model's manifest.
        link: what to expect of the link now.
        budget_s: seconds that the second reading may take.
        roi_bytes: size of one region on the wire.
        max_rois: regions of one study that the cloud takes at most.
    """
    decisions = tuple(_route(candidate, thresholds) for candidate in candidates)
    plan = Plan(decisions)
    capacity = link.capacity(budget_s, roi_bytes)
    by_value = sorted(
        plan.uncertain, key=lambda i: -value_of_asking(decisions[i].candidate.score, thresholds)
    )
    held_back = _why_held_back(link, budget_s, capacity, max_rois)
    return Plan(decisions, tuple(by_value[: min(capacity, max_rois)]), held_back)


def value_of_asking(score: float, thresholds: Thresholds) -> float:
    """The cost that is to be expected if nobody reads this candidate again, in [0, 1/4].

    Reporting exactly from ``alone`` on is the best that can be done when a miss costs
    ``1 - alone`` and a false alarm ``alone`` (Elkan, The foundations of cost-sensitive learning,
    IJCAI 2001, section 2); the cost that remains is greatest at ``alone`` itself.
    """
    if score >= thresholds.alone:
        return (1 - score) * thresholds.alone
    return score * (1 - thresholds.alone)


def _route(candidate: Candidate, thresholds: Thresholds) -> Decision:
    score, low, high = candidate.score, thresholds.dismiss, thresholds.report
    if score < low:
        return Decision(candidate, Route.DISMISS, f"edge score {score:.3f} is below {low:.3f}")
    if score >= high:
        return Decision(candidate, Route.REPORT, f"edge score {score:.3f} reaches {high:.3f}")
    reason = f"edge score {score:.3f} lies between {low:.3f} and {high:.3f}"
    return Decision(candidate, Route.ESCALATE, reason)


def _why_held_back(link: LinkEstimate, budget_s: float, capacity: int, max_rois: int) -> str:
    if not link.available:
        return link.reason
    if budget_s <= 0:
        return "no time left to ask"
    if capacity >= max_rois:
        return f"no more than {max_rois} regions of one study are sent"
    return f"the link carries {capacity} regions in the {budget_s:.1f} s that were left"


def _number(given: Mapping[str, object], name: str) -> float:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnfitModel(f"thresholds: {name} = {value!r} must be a number")
    return float(value)
