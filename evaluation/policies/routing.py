"""The policies that know no link: which candidates are asked about, and which reported unasked.

``routes(study)`` says it for the candidates of one study. Sedna's filters are described after its
library (Apache-2.0, github.com/kubeedge/sedna, `hard_example_mining` and `joint_inference`): a
filter judges the edge's result hard or not, a hard one goes to the cloud, whose word then counts.

What every policy is held to, and the policies as the simulation runs them.

They share both readers, calibration, merger and the thresholds for what has or lacks its verdict;
they differ in what they ask about, how, and whether they know a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.audit import is_sampled
from edge.decide import Plan, Situation, Thresholds, decide
from edge.findings import Decision, Route
from edge.link.estimate import LinkEstimate
from edge.selection import SELECTION_POLICY, Size
from edge.settings import EdgeSettings
from evaluation.policies.studies import Study
from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Routes:
    """For each candidate ``(n,)``; what is neither is dismissed."""

    asked: BoolArray
    reported: BoolArray


Routing = Callable[[Study], Routes]


def edge_only(alone: float) -> Routing:
    """Nothing is asked about."""

    def routes(study: Study) -> Routes:
        reported = study.scores >= alone
        return Routes(np.zeros_like(reported), reported)

    return routes


def cloud_only() -> Routing:
    """Everything proposed is asked about."""

    def routes(study: Study) -> Routes:
        asked = np.ones(study.scores.shape, bool)
        return Routes(asked, ~asked)

    return routes


def band(low: float, high: float) -> Routing:
    """What scores from ``low`` to below ``high`` is asked about, what is above reported."""

    def routes(study: Study) -> Routes:
        reported = study.scores >= high
        return Routes((study.scores >= low) & ~reported, reported)

    return routes


def threshold_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``Threshold``: a study is hard if its candidates score below that on average.

    Of a hard one all candidates are sent; without candidates none is hard.
    """

    def routes(study: Study) -> Routes:
        hard = study.scores.size > 0 and float(study.scores.mean()) < threshold
        return cloud_only()(study) if hard else edge_only(alone)(study)

    return routes


def entropy_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``CrossEntropy``: hard is what leaves 1 - entropy / ln 2 below the threshold.

    It is made for a classification, so that it judges each candidate for itself.
    """

    def routes(study: Study) -> Routes:
        asked = certainty(study.scores) < threshold
        return Routes(asked, ~asked & (study.scores >= alone))

    return routes


def oracle(thresholds: Thresholds) -> Routing:
    """Asks where it knows that the cloud puts the edge's own word right, and nowhere else."""

    def routes(study: Study) -> Routes:
        nodule = np.array([bool(one.nodule) for one in study.sightings], bool)
        false = np.array([not one.nodule and not one.ignored for one in study.sightings], bool)
        edge, both = study.scores >= thresholds.alone, study.merged >= thresholds.final
        asked = (nodule & ~edge & both) | (false & edge & ~both)
        return Routes(asked, ~asked & edge)

    return routes


def certainty(chance: FloatArray) -> FloatArray:
    """1 - entropy of "nodule or not" in bits, ``(n,)``: 1 where it is certain, 0 at one half."""
    terms = [np.where(p > 0, -p * np.log2(np.maximum(p, 1e-12)), 0.0) for p in (chance, 1 - chance)]
    return np.asarray(1 - (terms[0] + terms[1]))


Plans = Callable[[Study, LinkEstimate, float], Plan]
"""The plan for a study, by what is known of the link and the seconds that are left to ask."""


@dataclass(frozen=True, eq=False)
class Policy:
    """One of those that are compared.

    Attributes:
        name: in tables.
        kind: those of one kind are one line in a plot.
        plans: what it asks about.
        patient: it knows no deadline, and asks as Sedna's client does.
        controlled: it has the agent's link, and amends its reports.
        told: what else is to be said of it.
    """

    name: str
    kind: str
    plans: Plans
    patient: bool = False
    controlled: bool = False
    told: dict[str, Any] = field(default_factory=dict)


def ours(thresholds: Thresholds, settings: EdgeSettings, name: str) -> Policy:
    """The agent's own: `edge.decide` with all that it is given there; ``name`` in tables."""

    def plans(study: Study, link: LinkEstimate, budget_s: float) -> Plan:
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

    return Policy(name, name, plans, controlled=True)


def routed(
    name: str, kind: str, routing: Routing, max_rois: int, *, patient: bool = False, **told: Any
) -> Policy:
    """A policy that knows no link: everything that its routing asks about, in full."""

    def plans(study: Study, _link: LinkEstimate, _budget_s: float) -> Plan:
        return plan_of(routing(study), study, max_rois)

    return Policy(name, kind, plans, patient, told=told)


def plan_of(routes: Routes, study: Study, max_rois: int) -> Plan:
    """The plan that asks by falling score."""
    decisions = tuple(
        Decision(candidate, _route(asked, reported), "")
        for candidate, asked, reported in zip(
            study.candidates, routes.asked, routes.reported, strict=True
        )
    )
    asked = np.flatnonzero(routes.asked)
    send = asked[np.argsort(-study.scores[asked], kind="stable")][:max_rois].tolist()
    return Plan(decisions, tuple(send), sizes=(Size.FULL,) * len(send))


def _route(asked: bool, reported: bool) -> Route:
    if asked:
        return Route.ESCALATE
    return Route.REPORT if reported else Route.DISMISS
