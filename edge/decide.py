"""Chooses: which candidate is dismissed, reported, or worth a second reading, and in what order.

A pure function of what it is given, so that a day of decisions can be replayed offline. It
knows nothing of the network, the clock or the pictures.

What can be sent of one study: how many regions, and with what bytes they are back in time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.errors import UnfitModel
from edge.findings import Decision, Finding, Route
from edge.link.estimate import LinkEstimate
from edge.selection import SELECTION_POLICY, Option, Pick, SelectionPolicy, Size, choose, least
from models.runtime.detection import Candidate


@dataclass(frozen=True)
class SendLimits:
    """The limits of one asking.

    Attributes:
        link: what to expect of it now.
        budget_s: seconds that the second reading may take.
        max_rois: regions of one study that the cloud takes at most.
        confidence: with which the answers are to be back within the budget.
    """

    link: LinkEstimate
    budget_s: float
    max_rois: int
    confidence: float

    @property
    def most(self) -> int:
        """Regions at most; a probe is one."""
        if not self.link.available or self.budget_s <= 0:
            return 0
        return 1 if self.link.probing else self.max_rois

    def fits(self, rois: int, sent_bytes: int) -> bool:
        """Whether so many regions with so many bytes together are answered within the budget."""
        return self.link.completion_s(rois, sent_bytes, self.confidence) <= self.budget_s

    def beside(self, rois: int, sent_bytes: int, offered: int, each_bytes: int) -> int:
        """For how many of those ``offered``, of ``each_bytes``, there is room beside the others."""
        for count in range(min(offered, self.most - rois), 0, -1):
            if self.fits(rois + count, sent_bytes + count * each_bytes):
                return count
        return 0

    def why_no_more(self, sent: int) -> str:
        """Why not more than ``sent`` regions go, in words for the report."""
        if not self.link.available:
            return self.link.reason
        if self.budget_s <= 0:
            return "no time left to ask"
        if self.link.probing:
            return "one region finds out whether the cloud is back"
        if sent >= self.max_rois:
            return f"no more than {self.max_rois} regions of one study are sent"
        return f"the link carries {sent} regions in the {self.budget_s:.1f} s that were left"


AUDITED = 3
"""Places of an audited scan that are read again at most."""


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

    Attributes:
        decisions: all candidates with their routes.
        send: places in ``decisions`` (they are the ROI identifiers on the wire), the most
            valuable first; those that are reported anyway and only described come last, and
            behind them those that are audited.
        held_back: why the other uncertain ones, or the audited ones, are not among them; empty
            where all are sent.
        sizes: of the regions in ``send``, in the same order.
        later: uncertain ones that are not sent now but owed, the most valuable first: they wait
            for an amendment.
        audit: those in ``send`` that the edge dismissed, of a scan that is audited.
        characterize: what the edge reports by itself and wants described, by falling score.
    """

    decisions: tuple[Decision, ...]
    send: tuple[int, ...] = ()
    held_back: str = ""
    sizes: tuple[Size, ...] = ()
    later: tuple[int, ...] = ()
    audit: tuple[int, ...] = ()
    characterize: tuple[int, ...] = ()

    @property
    def uncertain(self) -> tuple[int, ...]:
        """The places of all candidates that want a second reading."""
        return tuple(i for i, d in enumerate(self.decisions) if d.route is Route.ESCALATE)

    @property
    def reported(self) -> tuple[int, ...]:
        """The places of all that the edge reports by itself, by falling score."""
        return _best(self.decisions, Route.REPORT)

    def index_of(self, finding: Finding) -> int:
        """Find the candidate that became the finding, by its index in ``decisions``."""
        if finding.verdict is not None:
            return finding.verdict.roi_id
        seen = finding.index_zyx, finding.edge_score
        candidates = (decision.candidate for decision in self.decisions)
        return next(i for i, c in enumerate(candidates) if (c.index_zyx, c.score) == seen)

    def size_of(self, place: int) -> Size:
        """The size in which the region of that place is sent, full where nothing is said."""
        return dict(zip(self.send, self.sizes, strict=False)).get(place, Size.FULL)


@dataclass(frozen=True)
class Situation:
    """All that one decision depends on.

    Attributes:
        candidates: of the screening network.
        thresholds: from the model's manifest.
        link: what to expect of the link now.
        budget_s: seconds that the second reading may take.
        roi_bytes: size of one full region on the wire, a cube.
        max_rois: regions of one study that the cloud takes at most.
        policy: what is worth how much.
        audited: whether the best that were dismissed are sent if nothing is uncertain.
    """

    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    link: LinkEstimate
    budget_s: float
    roi_bytes: int
    max_rois: int
    policy: SelectionPolicy = SELECTION_POLICY
    audited: bool = False


def decide(situation: Situation) -> Plan:
    """The plan for one study.

    What is sent has the greatest value of which the link, at the policy's confidence, brings
    the answers within the budget. One region is sent whenever there is a link and any time at
    all: a link that is never asked is never measured again. A link that was lost gets no more.
    Where there is room after all that is uncertain, the cloud is asked for size and kind of what
    is reported anyway, if the policy says so.
    """
    candidates, thresholds = situation.candidates, situation.thresholds
    link, policy, roi_bytes = situation.link, situation.policy, situation.roi_bytes
    decisions = tuple(_route(candidate, thresholds) for candidate in candidates)
    uncertain = sorted(
        Plan(decisions).uncertain,
        key=lambda i: -value_of_second_reading(candidates[i].score, thresholds),
    )
    offers = [_options(candidates[i], thresholds, roi_bytes, policy) for i in uncertain]
    room = SendLimits(link, situation.budget_s, situation.max_rois, policy.confidence)
    picks = _picked(offers, room)
    send = tuple(uncertain[pick.place] for pick in picks)
    left = tuple(i for i in uncertain if i not in send)
    sampled = situation.audited and not uncertain
    wanted = _best(decisions, Route.DISMISS)[:AUDITED] if sampled else ()
    characterize = _best(decisions, Route.REPORT) if policy.characterize else ()
    beside = () if left else (*characterize, *wanted)
    sent_bytes = sum(pick.option.sent_bytes for pick in picks)
    extra = beside[: room.beside(len(picks), sent_bytes, len(beside), roi_bytes)]
    audit = tuple(i for i in wanted if i in extra)
    open_ones = left or len(extra) < len(beside)
    return Plan(
        decisions,
        send + extra,
        held_back=room.why_no_more(len(send + extra)) if open_ones else "",
        sizes=(*(pick.option.size for pick in picks), *(Size.FULL for _ in extra)),
        later=() if link.off else left,
        audit=audit,
        characterize=characterize,
    )


def value_of_second_reading(score: float, thresholds: Thresholds) -> float:
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


def _picked(offers: Sequence[Sequence[Option]], room: SendLimits) -> tuple[Pick, ...]:
    """The regions that are sent of those on offer."""
    return (choose(offers, room.most, room.fits) or least(offers)) if room.most else ()


def _best(decisions: Sequence[Decision], route: Route) -> tuple[int, ...]:
    """The places of that route, the highest scores first."""
    places = (i for i, decision in enumerate(decisions) if decision.route is route)
    return tuple(sorted(places, key=lambda i: -decisions[i].candidate.score))


def _options(
    candidate: Candidate, thresholds: Thresholds, roi_bytes: int, policy: SelectionPolicy
) -> list[Option]:
    """The ways to send one candidate's region."""
    value, side = value_of_second_reading(candidate.score, thresholds), round(roi_bytes ** (1 / 3))
    full = (side, side, side)
    return [
        Option(size, value * policy.share(size), math.prod(size.shape_of(full)))
        for size in policy.sizes_for(candidate.diameter_mm, full)
    ]


def _number(given: Mapping[str, object], name: str) -> float:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnfitModel(f"thresholds: {name} = {value!r} must be a number")
    return float(value)
