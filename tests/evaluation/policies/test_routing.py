import numpy as np
import pytest

from edge.findings import Route
from edge.link.estimate import LinkEstimate, Pace
from edge.selection import Size
from edge.settings.core import EdgeSettings
from evaluation.policies.routing import (
    Routing,
    band,
    cloud_only,
    edge_only,
    entropy_filter,
    oracle,
    ours,
    plan_of,
    routed,
    threshold_filter,
)
from evaluation.policies.studies import Study
from tests.evaluation.made_cases import THRESHOLDS, sighting, study

STUDY = study(
    sighting(0.9, 0.9, "a"), sighting(0.5, 0.05), sighting(0.4, 0.9, "b"),
    sighting(0.2, 0.9, "c"), sighting(0.1, 0.1), nodules="abcd",
)  # fmt: skip
"""The nodule d has no candidate."""

EMPTY = study()
FAST = LinkEstimate.steady(Pace(0.01, 1e8, 1e8, 0.0, 0.001))


@pytest.mark.parametrize(
    ("routing", "one", "escalated", "reported"),
    [
        (edge_only(0.3), STUDY, [], [0, 1, 2]),
        (cloud_only(), STUDY, [0, 1, 2, 3, 4], []),
        (band(0.2, 0.5), STUDY, [2, 3], [0, 1]),
        (threshold_filter(0.5, 0.3), STUDY, [0, 1, 2, 3, 4], []),
        (threshold_filter(0.4, 0.3), STUDY, [], [0, 1, 2]),
        (threshold_filter(1.0, 0.3), EMPTY, [], []),
        (entropy_filter(0.01, 0.3), STUDY, [1], [0, 2]),
        (entropy_filter(0.3, 0.3), STUDY, [1, 2, 3], [0]),
        (entropy_filter(0.54, 0.3), STUDY, [0, 1, 2, 3, 4], []),
        (oracle(THRESHOLDS), STUDY, [1, 2, 3], [0]),
    ],
    ids=["edge only", "cloud only", "band", "mean below 0.5", "mean above 0.4", "empty",
         "entropy 0.01", "entropy 0.3", "entropy 0.54", "oracle"],
)  # fmt: skip
def test_what_each_routing_escalates_and_reports(
    routing: Routing, one: Study, escalated: list[int], reported: list[int]
) -> None:
    """Sedna decides by the mean of the study, which is 0.42, or by the entropy of each candidate.

    One half leaves no certainty; 0.9 and 0.1 leave 0.53, 0.4 leaves 0.03 and 0.2 leaves 0.28.
    """
    routes = routing(one)
    assert np.flatnonzero(routes.escalated).tolist() == escalated
    assert np.flatnonzero(routes.reported).tolist() == reported


def test_a_routing_becomes_a_plan() -> None:
    plan = plan_of(band(0.15, 0.85)(STUDY), STUDY, max_rois=2)
    assert [decision.route for decision in plan.decisions] == [
        Route.REPORT, Route.ESCALATE, Route.ESCALATE, Route.ESCALATE, Route.DISMISS]  # fmt: skip
    assert (plan.send, plan.sizes) == ((1, 2), (Size.FULL, Size.FULL))
    assert plan.uncertain == (1, 2, 3)


def test_a_routed_policy_knows_no_link() -> None:
    policy = routed("band", "fixed threshold", band(0.15, 0.85), 64, low=0.15)
    assert policy.plan(STUDY, FAST, 9.0) == policy.plan(STUDY, LinkEstimate(off=True), 0.0)
    assert policy.details == {"low": 0.15}


def test_ours_is_the_agent_s_own_decision() -> None:
    policy = ours(THRESHOLDS, EdgeSettings(audit_rate=0.0), "ours")
    assert policy.is_agent
    plan = policy.plan(STUDY, FAST, 9.0)
    assert set(plan.send[:3]) == {1, 2, 3}
    assert plan.send[3:] == (0,)
    off = LinkEstimate(available=False, reason="off")
    assert policy.plan(STUDY, off, 9.0).send == ()
    assert set(policy.plan(STUDY, off, 9.0).later) == {1, 2, 3}
