"""Merges the edge's scores with the cloud's verdicts into findings, each with its reason.

A pure function: the same plan and answers give the same findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.decide import Plan, Thresholds
from edge.errors import UnfitModel
from edge.exchange import Escalated
from edge.finding import DecidedBy, Decision, Finding, Route, SecondReading
from protos.messages import Verdict

EPSILON = 1e-6  # scores of exactly 0 and 1 have no finite logit


@dataclass(frozen=True)
class MergeWeights:
    """The logistic merger that was fitted with the models: how much each reader's word weighs."""

    bias: float
    edge: float
    cloud: float

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> MergeWeights:
        """The weights of the manifest's ``merge = [bias, edge, cloud]``.

        Raises:
            UnfitModel: they are missing, or are not three finite numbers.
        """
        given = settings.get("merge")
        if not isinstance(given, Sequence) or len(given) != 3 or not all(map(_finite, given)):
            raise UnfitModel(f"merge = {given!r}: the manifest must give [bias, edge, cloud]")
        return cls(*(float(value) for value in given))

    def merged(self, edge_score: float, cloud_probability: float) -> float:
        """sigmoid(bias + edge logit(edge score) + cloud logit(cloud probability)), in (0, 1)."""
        x = self.bias + self.edge * _logit(edge_score) + self.cloud * _logit(cloud_probability)
        return _sigmoid(x)


@dataclass(frozen=True)
class Merged:
    """The findings by falling probability, how far the second reading went, and why."""

    findings: tuple[Finding, ...]
    second_reading: SecondReading
    reason: str


def merge(plan: Plan, answers: Escalated, thresholds: Thresholds, weights: MergeWeights) -> Merged:
    """What becomes of every candidate, now that no more verdicts will come.

    Dismissed candidates are no findings; reported ones are. Of the uncertain ones those with a
    verdict are judged by the merged probability against ``thresholds.final``, the others by
    their edge score against ``thresholds.alone``.
    """
    findings = []
    for i, decision in enumerate(plan.decisions):
        if decision.route is Route.REPORT:
            findings.append(_finding(decision, DecidedBy.EDGE, decision.reason))
        elif decision.route is Route.ESCALATE and (verdict := answers.verdicts.get(i)):
            findings += _second_opinion(decision, verdict, thresholds, weights)
        elif decision.route is Route.ESCALATE and decision.candidate.score >= thresholds.alone:
            reason = f"edge alone, {decision.candidate.score:.2f} reaches {thresholds.alone:.2f}: "
            reason += f"second reading missing ({_why_missing(i, plan, answers)})"
            findings.append(_finding(decision, DecidedBy.EDGE_ALONE, reason))
    by_probability = sorted(findings, key=lambda finding: -finding.probability)
    return Merged(tuple(by_probability), *_second_reading(plan, answers))


def _second_opinion(
    decision: Decision, verdict: Verdict, thresholds: Thresholds, weights: MergeWeights
) -> list[Finding]:
    """The finding that edge and cloud agree on, or none."""
    score = decision.candidate.score
    probability = weights.merged(score, verdict.probability)
    if probability < thresholds.final:
        return []
    moved = "raised" if probability > score else "lowered"
    reason = f"cloud {moved} {score:.2f} to {probability:.2f}, which reaches {thresholds.final:.2f}"
    return [_finding(decision, DecidedBy.CLOUD, reason, probability, verdict)]


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


def _second_reading(plan: Plan, answers: Escalated) -> tuple[SecondReading, str]:
    wanted, came = len(plan.uncertain), len(answers.verdicts)
    if answers.switched_off:
        return SecondReading.MISSING, answers.reason
    if wanted == 0:
        return SecondReading.COMPLETE, "no candidate was uncertain"
    counts = f"{came} of {wanted} uncertain candidates were read again"
    if came == wanted:
        return SecondReading.COMPLETE, counts
    why = answers.reason or plan.held_back
    return (SecondReading.PARTIAL if came else SecondReading.MISSING), f"{counts}: {why}"


def _why_missing(i: int, plan: Plan, answers: Escalated) -> str:
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
