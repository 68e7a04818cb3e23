"""Policies as the simulation runs them."""

from __future__ import annotations

from edge.findings import Route
from edge.link.estimate import LinkEstimate, Pace
from edge.selection import Size
from edge.settings import EdgeSettings
from evaluation.policies.routing import band, ours, plan_of, routed
from tests.evaluation.made_cases import THRESHOLDS
from tests.evaluation.policies.test_routing import STUDY

FAST = LinkEstimate.steady(Pace(0.01, 1e8, 1e8, 0.0, 0.001))


def test_a_routing_becomes_a_plan() -> None:
    """Sent in full by falling score, no more than the cloud takes."""
    plan = plan_of(band(0.15, 0.85)(STUDY), STUDY, max_rois=2)
    assert [decision.route for decision in plan.decisions] == [
        Route.REPORT, Route.ESCALATE, Route.ESCALATE, Route.ESCALATE, Route.DISMISS]  # fmt: skip
    assert (plan.send, plan.sizes) == ((1, 2), (Size.FULL, Size.FULL))
    assert plan.uncertain == (1, 2, 3)


def test_a_routed_policy_knows_no_link() -> None:
    """The same plan for a link that is off and no time."""
    policy = routed("band", "fixed threshold", band(0.15, 0.85), 64, low=0.15)
    assert policy.plans(STUDY, FAST, 9.0) == policy.plans(STUDY, LinkEstimate(off=True), 0.0)
    assert policy.told == {"low": 0.15}


def test_ours_is_the_agent_s_own_decision() -> None:
    """Most valuable first, what is reported anyway after it; nothing where nobody may ask."""
    policy = ours(THRESHOLDS, EdgeSettings(audit_rate=0.0), "ours")
    assert policy.controlled
    plan = policy.plans(STUDY, FAST, 9.0)
    assert set(plan.send[:3]) == {1, 2, 3}
    assert plan.send[3:] == (0,)
    off = LinkEstimate(available=False, reason="off")
    assert policy.plans(STUDY, off, 9.0).send == ()
    assert set(policy.plans(STUDY, off, 9.0).later) == {1, 2, 3}
