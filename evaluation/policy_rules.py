"""What every policy is held to, and the policies as the simulation runs them.

They share both readers, calibration, merger and the thresholds for what has or lacks its verdict;
they differ in what they ask about, how, and whether they know a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge.audit import audited
from edge.decide import Plan, Situation, Thresholds
from edge.findings import Decision, Route
from edge.link.estimate import LinkEstimate
from edge.selection import POLICY, Size
from edge.settings import EdgeSettings
from evaluation.policy_routes import Routes, Routing
from evaluation.policy_studies import Study

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
        return Situation(
            candidates=study.candidates,
            thresholds=thresholds,
            link=link,
            budget_s=budget_s,
            roi_bytes=settings.roi_side**3,
            max_rois=settings.max_rois,
            policy=replace(POLICY, describe=settings.describe),
            audited=audited(study.name, settings.audit_rate),
        ).plan()

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
