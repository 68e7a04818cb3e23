"""Decide what happens to each candidate: dismiss it, report it, or send it for a second reading.

    link      measures what the network and the cloud can do      edge/link/
    budget    spends the study's time                             edge/budget.py
    decide    chooses the candidates that are worth sending       this file, with edge/selection.py

`decide` is a pure function of a `Situation`: a day of decisions can be replayed from the log
(`edge.replay`). It knows nothing of the network, the clock or the pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from edge.errors import UnfitModel
from edge.findings import Decision, Finding, Inner, Route
from edge.link.estimate import LinkEstimate
from edge.selection import SELECTION_POLICY, Option, SelectionPolicy, Size, choose, smallest
from models.runtime.detection import MASS_MM, Candidate

ROI_SIDE = 48
"""Voxels of a full ROI along each axis: what the cloud's model reads, and calibration read."""
AUDITED = 3
"""Most candidates of an audited scan that are sent."""


@dataclass(frozen=True)
class Thresholds:
    """The limits on the probability of a candidate, with and without a verdict on one scale.

    Attributes:
        possible: a candidate at or above it is listed in the report.
        finding: a candidate at or above it is a finding; between the two, a possible finding.
        dismiss: a candidate with a lower edge score is not sent, so that few are; the verdict could
            have listed it.
        report: no verdict brings a candidate with at least this edge score below ``finding``; 1
            where no score is so sure.
    """

    possible: float
    finding: float
    dismiss: float
    report: float

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> "Thresholds":
        """Read the thresholds that were fitted with the model.

        Raises:
            UnfitModel: one is missing or no probability, ``dismiss`` is above ``report``, or
                ``possible`` is above ``finding``.
        """
        table = settings.get("thresholds")
        if not isinstance(table, Mapping):
            raise UnfitModel(f"thresholds = {table!r}: the manifest must hold a table of four")
        values = {field.name: _number(table, field.name) for field in fields(cls)}
        for low, high in (("dismiss", "report"), ("possible", "finding")):
            if values[low] > values[high]:
                raise UnfitModel(f"thresholds: {low} {values[low]} is above {high} {values[high]}")
        return cls(**values)


@dataclass(frozen=True)
class Situation:
    """All that one decision depends on.

    The methods say how many ROIs, and how many bytes, can be answered in time.

    Attributes:
        budget_s: seconds that the second reading may take.
        roi_bytes: size of one full ROI on the wire, a cube.
        max_rois: most ROIs of one study that the cloud accepts.
        audited: whether the best dismissed candidates are sent if nothing is uncertain.
    """

    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    link: LinkEstimate
    budget_s: float
    roi_bytes: int
    max_rois: int
    policy: SelectionPolicy = SELECTION_POLICY
    audited: bool = False

    @property
    def most(self) -> int:
        """The largest number of ROIs to send; 1 while the link is only probed."""
        if not self.link.available or self.budget_s <= 0:
            return 0
        return 1 if self.link.probing else self.max_rois

    def fits(self, rois: int, sent_bytes: int) -> bool:
        """Tell whether that many ROIs, of ``sent_bytes`` in all, are answered within the budget."""
        return self.link.completion_s(rois, sent_bytes, self.policy.confidence) <= self.budget_s

    def count_extra(self, rois: int, sent_bytes: int, wanted: int) -> int:
        """Count how many of ``wanted`` full ROIs fit beside ``rois`` others."""
        for count in range(min(wanted, self.most - rois), 0, -1):
            if self.fits(rois + count, sent_bytes + count * self.roi_bytes):
                return count
        return 0

    def why_no_more(self, sent: int) -> str:
        """Return the reason, for the report, why no more than ``sent`` candidates are sent."""
        if not self.link.available:
            return self.link.why_not
        if self.budget_s <= 0:
            return "no time was left for a second reading"
        if self.link.probing:
            return "one was sent to test whether the cloud is reachable again"
        if sent >= self.max_rois:
            return f"the limit per study is {self.max_rois}"
        return f"the link was fast enough for {sent} in the {self.budget_s:.1f} s left"


@dataclass(frozen=True)
class Plan:
    """All candidates with their routes, and which of them are sent.

    An index is that of a candidate in ``decisions``. It is the ROI identifier on the wire.

    Attributes:
        send: indices of the candidates to send, the most valuable first. Candidates to
            characterize come after the uncertain ones, those of an audit come last.
        held_back: why not all uncertain or audited ones are sent; empty if they are.
        sizes: of the ROIs in ``send``, in the same order.
        later: uncertain ones that are not sent now, the most valuable first. They stay pending.
        audit: those in ``send`` that the edge dismissed, of a scan that is audited.
        characterize: those that the edge reports and the cloud should characterize, by falling
            score.
        inner: the first and the last slice, between which an outline is whole.
    """

    decisions: tuple[Decision, ...]
    send: tuple[int, ...] = ()
    held_back: str = ""
    sizes: tuple[Size, ...] = ()
    later: tuple[int, ...] = ()
    audit: tuple[int, ...] = ()
    characterize: tuple[int, ...] = ()
    inner: Inner = None

    @property
    def uncertain(self) -> tuple[int, ...]:
        """All candidates that need a second reading."""
        return tuple(i for i, d in enumerate(self.decisions) if d.route is Route.ESCALATE)

    def index_of(self, finding: Finding) -> int:
        """Find the candidate that became the finding."""
        if finding.verdict is not None:
            return finding.verdict.roi_id
        seen = finding.index_zyx, finding.edge_score
        candidates = (decision.candidate for decision in self.decisions)
        return next(i for i, c in enumerate(candidates) if (c.index_zyx, c.score) == seen)

    def size_of(self, index: int) -> Size:
        """Look up the size in which a candidate is sent; full if it is not in ``sizes``."""
        return dict(zip(self.send, self.sizes, strict=False)).get(index, Size.FULL)


def decide(situation: Situation) -> Plan:
    """Plan the second reading of one study.

    The candidates that are sent have the greatest value whose answers the link brings back within
    the budget, at the policy's confidence. One ROI is sent whenever there is a link and any time:
    a link that is not used is not measured. A link that was down gets only that one.
    """
    candidates, thresholds = situation.candidates, situation.thresholds
    policy, roi_bytes = situation.policy, situation.roi_bytes

    # 1. The score alone gives each candidate its route.
    decisions = tuple(_route(candidate, thresholds) for candidate in candidates)

    # 2. The uncertain ones compete for the link: each may be sent in several sizes, and a size
    # has a value and a number of bytes. If nothing fits, the most valuable one is still sent.
    uncertain = sorted(
        Plan(decisions).uncertain,
        key=lambda i: -value_of_second_reading(candidates[i].score, thresholds),
    )
    offers = [_options(candidates[i], thresholds, roi_bytes, policy) for i in uncertain]
    most = situation.most
    picks = (choose(offers, most, situation.fits) or smallest(offers)) if most else ()
    send = tuple(uncertain[pick.offer] for pick in picks)
    left = tuple(i for i in uncertain if i not in send)

    # 3. If all of them are sent, what fits beside them goes too, in full size: what the edge
    # reports anyway, for its type and malignancy score, and then the sample of an audit.
    characterize = _best(decisions, Route.REPORT) if policy.characterize else ()
    sampled = situation.audited and not uncertain
    audit = _best(decisions, Route.DISMISS)[:AUDITED] if sampled else ()
    wanted = () if left else (*characterize, *audit)
    sent_bytes = sum(pick.option.sent_bytes for pick in picks)
    extra = wanted[: situation.count_extra(len(picks), sent_bytes, len(wanted))]

    # 4. Uncertain candidates that are not sent stay pending, unless the site has no cloud.
    incomplete = left or len(extra) < len(wanted)
    return Plan(
        decisions,
        send + extra,
        held_back=situation.why_no_more(len(send + extra)) if incomplete else "",
        sizes=(*(pick.option.size for pick in picks), *(Size.FULL for _ in extra)),
        later=() if situation.link.off else left,
        audit=tuple(i for i in audit if i in extra),
        characterize=characterize,
    )


def value_of_second_reading(score: float, thresholds: Thresholds) -> float:
    """Return the expected cost of deciding this candidate without one, in [0, 1/4].

    Reporting exactly from ``finding`` on is the best decision when a miss costs ``1 - finding``
    and a false positive ``finding`` (Elkan, The foundations of cost-sensitive learning, IJCAI
    2001, section 2). The cost that remains is greatest at ``finding`` itself.
    """
    if score >= thresholds.finding:
        return (1 - score) * thresholds.finding
    return score * (1 - thresholds.finding)


def _route(candidate: Candidate, thresholds: Thresholds) -> Decision:
    score, low, high = candidate.score, thresholds.dismiss, thresholds.report
    if candidate.diameter_mm > MASS_MM:
        low = high = thresholds.possible  # an ROI shows a part of it: the edge decides
    if score < low:
        reason = f"edge score {score:.3f} is below the threshold {low:.3f}"
        return Decision(candidate, Route.DISMISS, reason)
    if score >= high and high < 1:
        reason = f"edge score {score:.3f} is at or above the threshold {high:.3f}"
        return Decision(candidate, Route.REPORT, reason)
    reason = f"edge score {score:.3f} is between the thresholds {low:.3f} and {high:.3f}"
    return Decision(candidate, Route.ESCALATE, reason)


def _best(decisions: Sequence[Decision], route: Route) -> tuple[int, ...]:
    """Return the candidates of that route, the highest scores first."""
    indices = (i for i, decision in enumerate(decisions) if decision.route is route)
    return tuple(sorted(indices, key=lambda i: -decisions[i].candidate.score))


def _options(
    candidate: Candidate, thresholds: Thresholds, roi_bytes: int, policy: SelectionPolicy
) -> list[Option]:
    """Return the sizes in which a candidate may be sent, with their values and bytes."""
    value = value_of_second_reading(candidate.score, thresholds)
    side = round(roi_bytes ** (1 / 3))
    full = (side, side, side)
    return [
        Option(size, value * policy.share(size), math.prod(size.shape_of(full)))
        for size in policy.sizes_for(candidate.diameter_mm, full)
    ]


def _number(table: Mapping[str, object], name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UnfitModel(f"thresholds: {name} = {value!r} must be a probability, from 0 to 1")
    return float(value)
