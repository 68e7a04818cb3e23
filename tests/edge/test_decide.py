from __future__ import annotations

import pytest

from edge.decide import Thresholds, decide, value_of_asking
from edge.errors import UnfitModel
from edge.finding import Route
from edge.link import OFF, LinkEstimate
from tests.edge.cases import SETTINGS, THRESHOLDS, candidate, plan_of


def test_routes_part_at_the_thresholds() -> None:
    """Below dismiss is dismissed, from report on reported, between them escalated."""
    routes = [d.route for d in plan_of(0.95, 0.9, 0.899, 0.1, 0.099).decisions]
    expected = [Route.REPORT, Route.REPORT, Route.ESCALATE, Route.ESCALATE, Route.DISMISS]
    assert routes == expected


def test_most_valuable_candidates_are_sent_first() -> None:
    """Those nearest to the threshold of the edge alone come first, in falling order of worth."""
    plan = plan_of(0.85, 0.51, 0.45, 0.12)
    assert [plan.decisions[i].candidate.score for i in plan.send] == [0.51, 0.45, 0.85, 0.12]


def test_value_of_asking_is_the_cost_left_without_an_answer() -> None:
    """The value is s(1-t) below the threshold t and (1-s)t above, greatest at t itself."""
    assert value_of_asking(0.2, THRESHOLDS) == pytest.approx(0.2 * 0.5)
    assert value_of_asking(0.8, THRESHOLDS) == pytest.approx(0.2 * 0.5)
    assert value_of_asking(0.5, THRESHOLDS) == pytest.approx(0.25)


def test_no_more_is_sent_than_the_link_carries() -> None:
    """A link of 10 ROIs a second with a round trip of 0.1 s carries 3 in 0.45 s."""
    link = LinkEstimate(round_trip_s=0.1, bytes_per_s=1e9, queue_s=0.0, roi_s=0.1)
    candidates = [candidate(0.5, at=i) for i in range(6)]
    plan = decide(candidates, THRESHOLDS, link, budget_s=0.45, roi_bytes=1000, max_rois=64)
    assert len(plan.send) == 3
    assert plan.held_back == "the link carries 3 regions in the 0.5 s that were left"


def test_no_more_is_sent_than_the_cloud_takes() -> None:
    """The limit on regions of one study holds however fast the link is."""
    plan = plan_of(*[0.5] * 9, max_rois=4)
    assert len(plan.send) == 4
    assert plan.held_back == "no more than 4 regions of one study are sent"


def test_nothing_is_sent_without_link_or_time() -> None:
    """With the link off, or no time left, nothing is sent and the reason is given."""
    off = plan_of(0.5, link=OFF)
    late = decide(
        [candidate(0.5)], THRESHOLDS, LinkEstimate(), budget_s=0.0, roi_bytes=1, max_rois=9
    )
    assert (off.send, off.held_back) == ((), "off")
    assert (late.send, late.held_back) == ((), "no time left to ask")


def test_same_input_gives_same_plan() -> None:
    """The decision is a pure function: it can be replayed."""
    assert plan_of(0.3, 0.7, 0.95) == plan_of(0.3, 0.7, 0.95)


def test_every_decision_gives_its_numbers() -> None:
    """The reason names the score and the threshold that it was held against."""
    reasons = [d.reason for d in plan_of(0.95, 0.5, 0.05).decisions]
    assert reasons == [
        "edge score 0.950 reaches 0.900",
        "edge score 0.500 lies between 0.100 and 0.900",
        "edge score 0.050 is below 0.100",
    ]


def test_thresholds_come_from_the_manifest() -> None:
    """The four numbers are taken as they stand."""
    assert Thresholds.from_manifest(SETTINGS) == THRESHOLDS


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "thresholds = None"),
        ({"thresholds": {"dismiss": 0.1, "report": 0.9, "alone": 0.5}}, "final = None"),
        ({"thresholds": {**THRESHOLDS.__dict__, "alone": "half"}}, "alone = 'half'"),
        ({"thresholds": {**THRESHOLDS.__dict__, "final": float("nan")}}, "final = nan"),
        ({"thresholds": {**THRESHOLDS.__dict__, "dismiss": 0.95}}, "dismiss 0.95 above 0.9"),
    ],
)
def test_unfit_manifest_is_refused(settings: dict[str, object], says: str) -> None:
    """Missing or senseless thresholds are refused with the offending value."""
    with pytest.raises(UnfitModel, match=says):
        Thresholds.from_manifest(settings)
