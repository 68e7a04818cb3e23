"""Merge the edge's scores with the cloud's verdicts into findings, each with its reason.

A pure function: the same plan and verdicts give the same findings and possible findings.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge.audit_sampling import confirms
from edge.decide import Plan, Thresholds
from edge.errors import UnfitModel
from edge.escalation.rois import EscalationResult, text_of
from edge.findings import BoolArray, DecidedBy, Decision, Finding, Outline, Route, SecondReading
from imaging.roi import roi_start
from imaging.volume import Geometry
from models.runtime.detection import MASS_MM, sigmoid
from protos.messages import Verdict

NOT_MEASURED = "the edge alone gives no type and no outline"

EPSILON = 1e-6  # scores of exactly 0 and 1 have no finite logit

_PLAUSIBLE = (0.7, 1.5)
"""An outline of a diameter outside these shares of the network's has run into a vessel or the wall,
or is a small part of the nodule: its volume is not stated."""


@dataclass(frozen=True)
class MergeWeights:
    """The logistic regression that was fitted with the models.

    The cloud's logit counts from ``least`` to ``most``: beyond them were too few nodules or false
    positives to tell how much more certain it is. So a verdict moves a probability by a bounded
    step: from ``report`` on, none takes a finding away.
    """

    bias: float
    edge: float
    cloud: float
    least: float = -math.inf
    most: float = math.inf

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> "MergeWeights":
        """Read ``merge = [bias, edge, cloud, least, most]`` of the manifest.

        Raises:
            UnfitModel: it is missing, or is not five finite numbers; a weight is below 0, or
                ``least`` above ``most``.
        """
        weights = settings.get("merge")
        if not isinstance(weights, Sequence) or len(weights) != 5:
            raise UnfitModel(
                f"merge = {weights!r}: the manifest must hold [bias, edge, cloud, least, most]"
            )
        numbers = [w for w in weights if isinstance(w, int | float) and not isinstance(w, bool)]
        if len(numbers) < 5 or not all(abs(w) <= sys.float_info.max for w in numbers):
            raise UnfitModel(f"merge = {weights!r}: the manifest must hold finite numbers")
        found = cls(*map(float, numbers))
        if min(found.edge, found.cloud) < 0 or found.least > found.most:
            raise UnfitModel(f"merge = {weights!r}: expected weights of 0 and more, least to most")
        return found

    def merged(self, edge_score: float, cloud_probability: float, diameter_mm: float) -> float:
        """Return the probability of a candidate with a verdict, in (0, 1).

        It is sigmoid(bias + edge logit(edge) + cloud logit(cloud)), with the cloud's logit within
        its limits; that of a mass is the edge's own.
        """
        if diameter_mm > MASS_MM:
            return edge_score
        cloud = min(max(_logit(cloud_probability), self.least), self.most)
        return float(sigmoid(self.bias + self.edge * _logit(edge_score) + self.cloud * cloud))


@dataclass(frozen=True)
class Merged:
    """The findings and possible findings, and how complete the second reading is.

    Both lists are in order of falling probability. ``reason`` says which candidates were read
    again. ``uncharacterized`` are the candidates whose characterization is missing, and ``why`` the
    reason where ``reason`` does not give it.
    """

    findings: tuple[Finding, ...]
    possible: tuple[Finding, ...]
    second_reading: SecondReading
    reason: str
    uncharacterized: tuple[int, ...] = ()
    why: str = ""


def merge(
    plan: Plan,
    answers: EscalationResult,
    thresholds: Thresholds,
    weights: MergeWeights,
    geometry: Geometry,
) -> Merged:
    """Turn the candidates into findings, once no more verdicts will come.

    Every candidate has one probability: the merged one with a verdict, the edge's score without.
    At or above ``thresholds.finding`` it is a finding, at or above ``thresholds.possible`` a
    possible finding. A dismissed candidate is neither, unless an audit sent it and the cloud
    confirms it.

    ``geometry`` is that of the lung box.
    """
    listed: list[Finding] = []
    for i, decision in enumerate(plan.decisions):
        verdict = answers.verdicts.get(i)
        if verdict and (decision.route is not Route.DISMISS or i in plan.audit):
            mask = answers.masks.get(i)
            for finding in _with_verdict(decision, verdict, thresholds, weights):
                listed.append(outlined(finding, mask, geometry, plan))
        elif decision.route is Route.REPORT:
            listed.append(_finding(decision, DecidedBy.EDGE, decision.reason))
        elif decision.route is Route.ESCALATE:
            listed += _without_verdict(decision, _why_missing(i, plan, answers), thresholds)
    listed.sort(key=lambda one: -one.probability)
    added = sum(one.route is Route.DISMISS for one in listed)
    return Merged(
        tuple(one for one in listed if one.probability >= thresholds.finding),
        tuple(one for one in listed if one.probability < thresholds.finding),
        *_second_reading(plan, answers, added),
    )


def _with_verdict(
    decision: Decision, verdict: Verdict, thresholds: Thresholds, weights: MergeWeights
) -> Iterator[Finding]:
    """Yield the finding or possible finding of a candidate that has a verdict, or nothing."""
    score, limit = decision.candidate.score, thresholds.finding
    diameter_mm = decision.candidate.diameter_mm
    probability = weights.merged(score, verdict.probability, diameter_mm)
    match decision.route:
        case Route.REPORT:
            yield _finding(decision, DecidedBy.EDGE, decision.reason, probability, verdict)
        case Route.ESCALATE if reached := _reached(probability, thresholds):
            before, after = f"{score:.2f}", f"{probability:.2f}"
            moved = f"{'raised' if probability > score else 'lowered'} {before} to {after}"
            reason = f"the cloud {f'left it at {after}' if before == after else moved}, {reached}"
            yield _finding(decision, DecidedBy.CLOUD, reason, probability, verdict)
        # The edge's score would hold the merged probability down, and an audit is of the edge:
        # the cloud's own probability decides.
        case Route.DISMISS if confirms(verdict, thresholds):
            reason = (
                f"audit: the edge dismissed it with {score:.2f}; "
                f"the cloud gives {verdict.probability:.2f}, at or above the threshold {limit:.2f}"
            )
            yield _finding(decision, DecidedBy.CLOUD, reason, verdict.probability, verdict)


def _without_verdict(decision: Decision, why: str, thresholds: Thresholds) -> Iterator[Finding]:
    """Yield the finding of a candidate whose verdict is missing, for the reason ``why``."""
    score = decision.candidate.score
    if reached := _reached(score, thresholds):
        reason = f"no second reading: {why}; edge score {score:.2f} is {reached}"
        yield _finding(decision, DecidedBy.EDGE_ALONE, reason)


def _reached(probability: float, thresholds: Thresholds) -> str:
    """Say which threshold a probability reaches; empty for none."""
    if probability >= thresholds.finding:
        return f"at or above the threshold {thresholds.finding:.2f}"
    if probability >= thresholds.possible:
        return (
            f"below the threshold {thresholds.finding:.2f} of findings, "
            f"at or above {thresholds.possible:.2f} of possible findings"
        )
    return ""


def outlined(
    finding: Finding, mask: BoolArray | None, geometry: Geometry, plan: Plan | None = None
) -> Finding:
    """Add the outline with centre, volume and diameter, if it is that of the same nodule.

    ``mask`` is the cloud's outline in its ROI, ``geometry`` that of the lung box; ``plan`` knows
    its first and last slice. The network places a nodule of two parts, or a ring, on its brightest
    part; the outline's centre is better. But of a mass the ROI may hold a part: its centre stays.
    """
    if mask is None:
        return finding
    z, y, x = roi_start(finding.index_zyx, mask.shape)
    outline = Outline(mask, (z, y, x), math.prod(geometry.spacing_mm))
    # In mm, since voxels need not be cubes.
    index = outline.centre_zyx
    shift = geometry.to_world(index) - geometry.to_world(finding.index_zyx)
    if np.linalg.norm(shift) > max(finding.diameter_mm, 6.0):
        return finding  # another structure of the ROI
    if outline.diameter_mm > MASS_MM:
        index, shift = finding.index_zyx, np.zeros(3)
    x_mm, y_mm, z_mm = (float(a) for a in np.array(finding.centre_mm) + shift)
    moved = replace(finding, centre_mm=(x_mm, y_mm, z_mm), index_zyx=index, outline=outline)
    low, high = (share * finding.diameter_mm for share in _PLAUSIBLE)
    if outline.is_cut(plan.inner if plan else None) or not low <= outline.diameter_mm <= high:
        return moved  # it is drawn, but not measured
    return replace(moved, diameter_mm=outline.diameter_mm, volume_mm3=outline.volume_mm3)


def _finding(
    decision: Decision,
    decided_by: DecidedBy,
    reason: str,
    probability: float | None = None,
    verdict: Verdict | None = None,
) -> Finding:
    candidate = decision.candidate
    diameter_mm = verdict.diameter_mm if verdict else candidate.diameter_mm
    return Finding(
        centre_mm=candidate.centre_mm,
        diameter_mm=diameter_mm,
        probability=candidate.score if probability is None else probability,
        edge_score=candidate.score,
        decided_by=decided_by,
        reason=reason,
        index_zyx=candidate.index_zyx,
        route=decision.route,
        verdict=verdict,
    )


def _second_reading(
    plan: Plan, answers: EscalationResult, added: int
) -> tuple[SecondReading, str, tuple[int, ...], str]:
    """Return the last fields of `Merged`; an audit ``added`` findings."""
    if answers.switched_off:
        return SecondReading.OFF, f"{answers.reason}; {NOT_MEASURED}", (), ""
    why = answers.reason or plan.held_back
    wanted, read = len(plan.uncertain), sum(i in answers.verdicts for i in plan.uncertain)
    missing = tuple(i for i in plan.characterize if i not in answers.verdicts)
    measured = len(plan.characterize) - len(missing)
    words = [f"{read} of {wanted} uncertain candidates were read again"]
    if wanted == 0:
        words = ["no candidate was uncertain"]
        if measured:
            of = len(plan.characterize)
            words.append(f"the cloud measured {measured} of {of} findings of the edge")
        if added:
            words.append(f"an audit added {added} finding{'s' if added > 1 else ''} of the cloud")
    if not plan.characterize and any(d.route is Route.REPORT for d in plan.decisions):
        words.append(NOT_MEASURED)
    if read < wanted:
        words[0], why = f"{words[0]}: {why}", ""
    some = SecondReading.PARTIAL if (read if wanted else measured) else SecondReading.MISSING
    state = some if missing or read < wanted else SecondReading.COMPLETE
    return state, "; ".join(words), missing, why if missing else ""


def _why_missing(index: int, plan: Plan, answers: EscalationResult) -> str:
    if refusal := answers.refusals.get(index):
        return text_of(refusal)
    return answers.reason if index in plan.send or answers.switched_off else plan.held_back


def _logit(p: float) -> float:
    p = min(max(p, EPSILON), 1 - EPSILON)
    return math.log(p / (1 - p))
