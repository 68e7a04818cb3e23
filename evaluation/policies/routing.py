"""The policies that are compared: which candidates they escalate, and how.

All share both readers, calibration, score fusion and the thresholds of a finding. A *routing* knows
no link: it selects the candidates to escalate and those to report at once. Sedna's filters follow
its library (Apache-2.0, github.com/kubeedge/sedna, `hard_example_mining` and `joint_inference`): a
filter decides whether the edge's result is hard. A hard one is escalated, and the cloud's score
counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.audit_sampling import is_sampled
from edge.decide import Plan, Situation, Thresholds, decide
from edge.findings import Decision, Route
from edge.link.estimate import LinkEstimate
from edge.selection import SELECTION_POLICY, Size
from edge.settings.core import EdgeSettings
from evaluation.policies.studies import Study
from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Routes:
    """The escalated and the reported candidates, bool ``(n,)``; the others are dismissed."""

    escalated: BoolArray
    reported: BoolArray


Routing = Callable[[Study], Routes]


def edge_only(alone: float) -> Routing:
    """Escalate nothing."""
    return lambda study: Routes(np.zeros(study.scores.shape, bool), study.scores >= alone)


def cloud_only() -> Routing:
    """Escalate everything."""
    return band(-np.inf, np.inf)


def band(low: float, high: float) -> Routing:
    """Escalate scores in [``low``, ``high``), and report those from ``high`` on."""
    return lambda study: Routes((study.scores >= low) & (study.scores < high), study.scores >= high)


def threshold_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``Threshold``: escalate all of a study whose mean score is below the threshold."""

    def routes(study: Study) -> Routes:
        hard = study.scores.size > 0 and float(study.scores.mean()) < threshold
        return cloud_only()(study) if hard else edge_only(alone)(study)

    return routes


def entropy_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``CrossEntropy``: escalate candidates whose `certainty` is below the threshold.

    The filter is made for classification, so it decides for each candidate separately.
    """

    def routes(study: Study) -> Routes:
        escalated = certainty(study.scores) < threshold
        return Routes(escalated, ~escalated & (study.scores >= alone))

    return routes


def oracle(thresholds: Thresholds) -> Routing:
    """Escalate where the cloud corrects the edge, which only the truth can tell."""

    def routes(study: Study) -> Routes:
        limit = thresholds.finding
        edge, both = study.scores >= limit, study.merged >= limit
        escalated = (study.is_nodule & ~edge & both) | (study.is_false & edge & ~both)
        return Routes(escalated, ~escalated & edge)

    return routes


def certainty(chance: FloatArray) -> FloatArray:
    """Return 1 - the entropy in bits of "nodule or not", ``(n,)``: 1 is certain, 0 one half."""
    terms = [np.where(p > 0, -p * np.log2(np.maximum(p, 1e-12)), 0.0) for p in (chance, 1 - chance)]
    return np.asarray(1 - (terms[0] + terms[1]))


@dataclass(frozen=True, eq=False)
class Policy:
    """One policy: the plan for a study, the link's estimate, and the seconds left for the cloud.

    Policies of one ``kind`` share a marker in plots. One ``without_deadline`` requests as Sedna's
    client does; one that ``is_agent`` has the agent's link, and amends its reports.
    """

    name: str
    kind: str
    plan: Callable[[Study, LinkEstimate, float], Plan]
    without_deadline: bool = False
    is_agent: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def ours(thresholds: Thresholds, settings: EdgeSettings, name: str) -> Policy:
    """Return the agent's own policy, `edge.decide` under these settings."""

    def plan(study: Study, link: LinkEstimate, budget_s: float) -> Plan:
        situation = Situation(
            candidates=study.candidates,
            thresholds=thresholds,
            link=link,
            budget_s=budget_s,
            roi_bytes=settings.roi_side**3,
            max_rois=settings.max_rois,
            policy=replace(SELECTION_POLICY, characterize=settings.characterize),
            audited=is_sampled(study.name, settings.audit_rate),
        )
        return decide(situation)

    return Policy(name, name, plan, is_agent=True)


def routed(
    name: str,
    kind: str,
    routing: Routing,
    max_rois: int,
    *,
    without_deadline: bool = False,
    **details: Any,
) -> Policy:
    """Return the policy that sends everything that the routing escalates, in full size."""

    def plan(study: Study, _link: LinkEstimate, _budget_s: float) -> Plan:
        return plan_of(routing(study), study, max_rois)

    return Policy(name, kind, plan, without_deadline, details=details)


def plan_of(routes: Routes, study: Study, max_rois: int) -> Plan:
    """Return the plan that sends the escalated candidates by falling score."""
    decisions = (
        Decision(one, Route.ESCALATE if sent else Route.REPORT if reported else Route.DISMISS, "")
        for one, sent, reported in zip(
            study.candidates, routes.escalated, routes.reported, strict=True
        )
    )
    escalated = np.flatnonzero(routes.escalated)
    send = escalated[np.argsort(-study.scores[escalated], kind="stable")][:max_rois].tolist()
    return Plan(tuple(decisions), tuple(send), sizes=(Size.FULL,) * len(send))
