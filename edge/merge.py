"""Merges the edge's scores with the cloud's verdicts into findings, each with its reason.

A pure function: the same plan and answers give the same findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge.audit import confirms
from edge.decide import Plan, Thresholds
from edge.errors import UnfitModel
from edge.escalation.rois import EscalationResult
from edge.findings import BoolArray, DecidedBy, Decision, Finding, Outline, Route, SecondReading
from imaging.roi import roi_start
from imaging.volume import Geometry
from protos.messages import Verdict

SAME_PLACE_MM = 6.0
"""An outline whose middle is further off (or further than the diameter) is of something else."""

EPSILON = 1e-6  # scores of exactly 0 and 1 have no finite logit


@dataclass(frozen=True)
class MergeWeights:
    """The logistic merger that was fitted with the models: how much each reader's word weighs.

    ``most`` is the highest logit of the cloud that counts: where validation has no false alarms
    there is nothing to tell by it.
    """

    bias: float
    edge: float
    cloud: float
    most: float = math.inf

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> MergeWeights:
        """The weights of the manifest's ``merge = [bias, edge, cloud, most]``; most may be absent.

        Raises:
            UnfitModel: they are missing, or are not three or four finite numbers.
        """
        given = settings.get("merge")
        if not isinstance(given, Sequence) or len(given) not in (3, 4):
            raise UnfitModel(f"merge = {given!r}: the manifest must give [bias, edge, cloud, most]")
        if not all(map(_finite, given)):
            raise UnfitModel(f"merge = {given!r}: the manifest must give finite numbers")
        return cls(*(float(value) for value in given))

    def merged(self, edge_score: float, cloud_probability: float) -> float:
        """sigmoid(bias + edge logit(edge) + cloud min(logit(cloud), most)), in (0, 1)."""
        cloud = min(_logit(cloud_probability), self.most)
        return _sigmoid(self.bias + self.edge * _logit(edge_score) + self.cloud * cloud)


@dataclass(frozen=True)
class Merged:
    """The findings, small ones last, by falling probability; how far it was read again, and why."""

    findings: tuple[Finding, ...]
    second_reading: SecondReading
    reason: str


def merge(
    plan: Plan,
    answers: EscalationResult,
    thresholds: Thresholds,
    weights: MergeWeights,
    geometry: Geometry,
) -> Merged:
    """What becomes of every candidate, now that no more verdicts will come.

    Dismissed candidates are no findings, unless an audit had one read again and the cloud calls it
    a nodule. Reported ones are, whatever the cloud says of them: it is asked for their size and
    kind. Of the uncertain ones those with a verdict are judged by the merged probability against
    ``thresholds.final``, the others by their edge score against ``thresholds.alone``.
    ``geometry`` is that of the box that was read.
    """
    findings = []
    for i, decision in enumerate(plan.decisions):
        verdict, score = answers.verdicts.get(i), decision.candidate.score
        if verdict and (decision.route is not Route.DISMISS or i in plan.audit):
            finding = _second_opinion(decision, verdict, thresholds, weights)
            mask = answers.masks.get(i)
            findings += [_outlined(one, mask, geometry) for one in finding]
        elif decision.route is Route.REPORT:
            findings.append(_finding(decision, DecidedBy.EDGE, decision.reason))
        elif decision.route is Route.ESCALATE and score >= thresholds.alone:
            reason = f"edge alone, {score:.2f} reaches {thresholds.alone:.2f}: "
            reason += f"second reading missing ({_why_missing(i, plan, answers)})"
            findings.append(_finding(decision, DecidedBy.EDGE_ALONE, reason))
    by_probability = sorted(findings, key=lambda finding: (finding.small, -finding.probability))
    return Merged(tuple(by_probability), *_second_reading(plan, answers))


def _second_opinion(
    decision: Decision, verdict: Verdict, thresholds: Thresholds, weights: MergeWeights
) -> list[Finding]:
    """The finding that edge and cloud agree on, or none; what the edge reports stays one."""
    score = decision.candidate.score
    if decision.route is Route.DISMISS:
        return _audited(decision, verdict, thresholds)
    probability = weights.merged(score, verdict.probability)
    if decision.route is Route.REPORT:
        return [_finding(decision, DecidedBy.EDGE, decision.reason, probability, verdict)]
    if probability < thresholds.final:
        return []
    moved = "raised" if probability > score else "lowered"
    reason = f"cloud {moved} {score:.2f} to {probability:.2f}, which reaches {thresholds.final:.2f}"
    return [_finding(decision, DecidedBy.CLOUD, reason, probability, verdict)]


def _audited(decision: Decision, verdict: Verdict, thresholds: Thresholds) -> list[Finding]:
    """The finding that the cloud alone stands for, or none."""
    if not confirms(verdict, thresholds):
        return []
    says = f"the cloud says {verdict.probability:.2f}, which reaches {thresholds.final:.2f}"
    reason = f"audit: dismissed on the edge with {decision.candidate.score:.2f}, {says}"
    return [_finding(decision, DecidedBy.CLOUD, reason, verdict.probability, verdict)]


def _outlined(finding: Finding, mask: BoolArray | None, geometry: Geometry) -> Finding:
    """The finding with its outline, and its centre where that has it."""
    if mask is None:
        return finding
    z, y, x = roi_start(finding.index_zyx, mask.shape)
    outline = Outline(mask, (z, y, x), math.prod(geometry.spacing_mm))
    return _placed(replace(finding, outline=outline), geometry)


def _placed(finding: Finding, geometry: Geometry) -> Finding:
    """The finding with its centre where its outline has it, if that is still the same place.

    The network places a nodule of two parts, or a ring, on its brightest part.
    """
    if finding.outline is None:
        return finding
    index = finding.outline.centre_zyx
    shift = geometry.to_world(index) - geometry.to_world(finding.index_zyx)
    if np.linalg.norm(shift) > max(finding.diameter_mm, SAME_PLACE_MM):
        return finding
    x, y, z = (float(a) for a in np.array(finding.centre_mm) + shift)
    return replace(finding, centre_mm=(x, y, z), index_zyx=index)


def _finding(
    decision: Decision,
    decided_by: DecidedBy,
    reason: str,
    probability: float | None = None,
    verdict: Verdict | None = None,
) -> Finding:
    candidate = decision.candidate
    return Finding(
        centre_mm=candidate.centre_mm,
        diameter_mm=verdict.diameter_mm if verdict else candidate.diameter_mm,
        probability=candidate.score if probability is None else probability,
        edge_score=candidate.score,
        decided_by=decided_by,
        reason=reason,
        index_zyx=candidate.index_zyx,
        route=decision.route,
        verdict=verdict,
    )


def _second_reading(plan: Plan, answers: EscalationResult) -> tuple[SecondReading, str]:
    wanted, came = len(plan.uncertain), sum(i in answers.verdicts for i in plan.uncertain)
    if answers.switched_off:
        return SecondReading.MISSING, answers.reason
    if wanted == 0:
        return _described(plan, answers)
    counts = f"{came} of {wanted} uncertain candidates were read again"
    if came == wanted:
        return SecondReading.COMPLETE, counts
    why = answers.reason or plan.held_back
    return (SecondReading.PARTIAL if came else SecondReading.MISSING), f"{counts}: {why}"


def _described(plan: Plan, answers: EscalationResult) -> tuple[SecondReading, str]:
    """Of a study that leaves nothing uncertain: whether the cloud told of what is reported."""
    why = answers.reason or plan.held_back
    if not why or not plan.characterize or any(i in answers.verdicts for i in plan.characterize):
        return SecondReading.COMPLETE, "no candidate was uncertain"
    return SecondReading.MISSING, f"no candidate was uncertain, none was described: {why}"


def _why_missing(i: int, plan: Plan, answers: EscalationResult) -> str:
    if refusal := answers.refusals.get(i):
        return f"{refusal.error}: {refusal.reason}"
    return answers.reason if i in plan.send or answers.switched_off else plan.held_back


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _logit(p: float) -> float:
    p = min(max(p, EPSILON), 1 - EPSILON)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
