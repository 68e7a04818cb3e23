import math
from dataclasses import replace
from typing import Any

import pytest

from edge.decide import Situation, Thresholds, decide, value_of_second_reading
from edge.errors import UnfitModel
from edge.findings import Route
from edge.link.estimate import OFF, LinkEstimate, Pace
from edge.selection import Size
from tests.edge.builders import LISTING, SHAPE, THRESHOLDS, candidate, plan_of

THIN = LinkEstimate.steady(Pace(0.1, 100_000, 1e6, queue_s=0.0, roi_s=0.02))


@pytest.mark.parametrize(
    ("score", "route", "reason"),
    [
        (0.9, Route.REPORT, "0.900 is at or above the threshold 0.900"),
        (0.899, Route.ESCALATE, "0.899 is between the thresholds 0.100 and 0.900"),
        (0.1, Route.ESCALATE, "0.100 is between the thresholds 0.100 and 0.900"),
        (0.099, Route.DISMISS, "0.099 is below the threshold 0.100"),
    ],
)
def test_routes_part_at_the_thresholds(score: float, route: Route, reason: str) -> None:
    (decision,) = plan_of(score).decisions
    assert (decision.route, decision.reason) == (route, f"edge score {reason}")


@pytest.mark.parametrize(("score", "value"), [(0.2, 0.2 * 0.5), (0.8, 0.2 * 0.5), (0.5, 0.25)])
def test_value_is_the_expected_cost_without_a_second_reading(score: float, value: float) -> None:
    """The value is s(1-t) below the threshold t and (1-s)t above, greatest at t itself."""
    assert value_of_second_reading(score, THRESHOLDS) == pytest.approx(value)


TEN_A_SECOND = LinkEstimate.steady(Pace(0.1, 1e9, 1e9, queue_s=0.0, roi_s=0.1))
AWAY = LinkEstimate(available=False, reason="lost; next attempt in 9 s")


@pytest.mark.parametrize(
    ("situation", "sent", "later", "why"),
    [
        ({"link": TEN_A_SECOND, "budget_s": 0.45, "roi_bytes": 1000}, 3, 3,
         "the link was fast enough for 3 in the 0.5 s left"),
        ({"max_rois": 4}, 4, 2, "the limit per study is 4"),
        ({"budget_s": 0.0}, 0, 6, "no time was left for a second reading"),
        ({"link": LinkEstimate(probing=True)}, 1, 5,
         "one was sent to test whether the cloud is reachable again"),
        ({"link": AWAY}, 0, 6, AWAY.why_not),
        # a site without a cloud waits for nothing
        ({"link": OFF}, 0, 0, OFF.reason),
    ],
)  # fmt: skip
def test_what_is_held_back_has_a_reason_and_stays_pending(
    situation: dict[str, Any], sent: int, later: int, why: str
) -> None:
    plan = plan_of(*[0.5] * 6, **situation)
    assert (len(plan.send), len(plan.later), plan.held_back) == (sent, later, why)


HOPELESS = LinkEstimate.steady(Pace(60.0, 10.0, 10.0, queue_s=60.0, roi_s=9.0))


@pytest.mark.parametrize(
    ("scores", "situation", "send", "sizes", "later"),
    [
        ((0.85, 0.51, 0.45, 0.12), {}, (1, 2, 0, 3), {Size.FULL}, ()),
        # at 100 kB/s four full regions take 4.5 s: in 1.8 s all four go, reduced
        ((0.5,) * 4, {"link": THIN, "budget_s": 1.8}, (0, 1, 2, 3), {Size.REDUCED}, ()),
        ((0.12, 0.2, 0.95, 0.5, 0.01, 0.3), {"link": THIN, "budget_s": 0.6}, (3, 5), None, (1, 0)),
        ((0.4, 0.5), {"link": HOPELESS, "budget_s": 0.5}, (1,), {Size.SLAB}, (0,)),
    ],
)
def test_the_most_valuable_are_sent_first_and_smaller_before_they_stay_pending(
    scores: tuple[float, ...],
    situation: dict[str, Any],
    send: tuple[int, ...],
    sizes: set[Size] | None,
    later: tuple[int, ...],
) -> None:
    plan = plan_of(*scores, **situation)
    assert (plan.send, plan.later) == (send, later)
    assert sizes in (None, set(plan.sizes))


def test_the_predicted_95th_percentile_stays_inside_the_budget() -> None:
    scores = [0.3 + 0.01 * i for i in range(12)]
    for budget_s in (0.4, 0.6, 1.0, 1.7, 3.0):
        plan = plan_of(*scores, budget_s=budget_s)
        sent_bytes = sum(math.prod(size.shape_of(SHAPE)) for size in plan.sizes)
        assert LinkEstimate().completion_s(len(plan.send), sent_bytes) <= budget_s
        assert plan.send


def test_a_large_nodule_is_sent_whole_or_not_at_all() -> None:
    """A nodule of 30 mm is not cut down to 32 mm: where it does not fit, a smaller one goes."""
    large = replace(candidate(0.5), diameter_mm=30.0)
    candidates = (large, candidate(0.4, at=1))
    roomy = decide(Situation(candidates, THRESHOLDS, THIN, 1.7, 48**3, max_rois=64))
    assert (roomy.send, roomy.sizes) == ((0, 1), (Size.FULL, Size.REDUCED))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (None, "thresholds = None"),
        ({"finding": None}, "finding = None"),
        ({"finding": "half"}, "finding = 'half'"),
        ({"finding": float("nan")}, "finding = nan"),
        ({"report": 99}, "report = 99 must be a prob"),
        ({"dismiss": -0.1}, "dismiss = -0.1 must be"),
        ({"possible": 10**400}, "possible = 10+ must be"),
        ({"possible": None}, "possible = None"),
        ({"possible": True}, "possible = True"),
        ({"possible": 0.7}, "possible 0.7 is above finding 0.5"),
        ({"dismiss": 0.95}, "dismiss 0.95 is above report 0.9"),
    ],
)
def test_unfit_manifest_is_refused(changed: dict[str, object] | None, says: str) -> None:
    table = {**vars(THRESHOLDS), **(changed or {})}
    stated = {name: value for name, value in table.items() if value is not None}
    with pytest.raises(UnfitModel, match=says):
        Thresholds.from_manifest({} if changed is None else {"thresholds": stated})


def test_a_mass_is_left_to_the_edge() -> None:
    """An ROI does not show the surroundings of a lesion of 31 mm: it is sent to be measured."""
    masses = tuple(replace(candidate(s, at=i), diameter_mm=31.0) for i, s in enumerate((0.3, 0.1)))
    plan = decide(Situation(masses, LISTING, LinkEstimate(), 60.0, 48**3, 64))
    assert [one.route for one in plan.decisions] == [Route.REPORT, Route.DISMISS]
    assert (plan.uncertain, plan.characterize, plan.send) == ((), (0,), (0,))


def test_reported_candidates_are_characterized_where_they_fit() -> None:
    plan = plan_of(0.95, 0.4, 0.99, 0.05)
    assert plan.send == (1, 2, 0)
    assert [plan.size_of(i) for i in (2, 0)] == [Size.FULL] * 2
    assert (plan.later, plan.held_back) == ((), "")
    assert plan_of(0.95, 0.4, 0.99, max_rois=2).send == (1, 2)
    assert plan_of(0.95, 0.4, 0.45, max_rois=1).send == (2,)
