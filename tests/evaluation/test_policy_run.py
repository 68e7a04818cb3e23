"""Whole runs of policies over traces."""

from __future__ import annotations

import pytest

from cloud.settings import CloudSettings
from edge.selection import Size
from edge.settings import EdgeSettings
from evaluation.policy_routes import band, cloud_only, edge_only
from evaluation.policy_rules import ours, plan_of, routed
from evaluation.policy_run import findings, run
from evaluation.policy_studies import studies_of
from evaluation.policy_world import Told, World
from evaluation.trace import Conditions, State, Trace, find_trace, steady
from tests.evaluation.made_cases import THRESHOLDS, made_cases
from tests.evaluation.test_policy_routes import STUDY

WORLD = World(made_cases(), EdgeSettings(audit_rate=0.0), CloudSettings(), every_s=20.0, seed=0)
STUDIES = studies_of(WORLD.cases, "test", rounds=1, seed=0)
OURS = ours(THRESHOLDS, WORLD.edge, "ours")
FIXED = routed("fixed", "fixed threshold", band(0.15, 0.85), 64)
DEAD = steady(Conditions(state=State.RESET))


def found(told: list[Told]) -> list[set[str]]:
    """Nodules of each answer."""
    return [one.found for one in told]


def test_findings_are_the_agent_s_own_merge() -> None:
    """With verdicts the merged word counts, without them the edge's alone."""
    plan = plan_of(band(0.15, 0.85)(STUDY), STUDY, 64)
    verdicts = {1: Size.FULL, 3: Size.FULL}
    assert sorted(findings(STUDY, plan, verdicts, WORLD.cases)) == [0, 2, 3]
    assert sorted(findings(STUDY, plan, {}, WORLD.cases)) == [0, 1, 2]


def test_without_a_cloud_all_say_what_the_edge_says() -> None:
    """And ours says it as fast; the debts stay."""
    alone = run(WORLD, routed("edge", "edge only", edge_only(0.3), 64), DEAD, STUDIES)
    own = run(WORLD, OURS, DEAD, STUDIES)
    assert found(own) == found(alone)
    slower_s = [a.took_s - b.took_s for a, b in zip(own, alone, strict=True)]
    assert max(slower_s) < 0.05
    assert sum(one.rois + one.later_rois for one in own) == 0


def test_over_a_good_link_ours_finds_what_its_band_finds() -> None:
    """Everything uncertain comes back in time."""
    fibre = find_trace("fibre")
    own, fixed = (run(WORLD, policy, fibre, STUDIES) for policy in (OURS, FIXED))
    assert found(own) == found(fixed)
    assert max(one.took_s for one in own) < 3.0


@pytest.mark.parametrize("name", ["lte-poor", "flapping", "half-open", "black-hole", "dsl"])
def test_ours_keeps_the_deadline_whatever_the_link(name: str) -> None:
    """It is back before the reserve begins."""
    for one in run(WORLD, OURS, find_trace(name), STUDIES):
        assert one.took_s <= WORLD.edge.deadline_s - WORLD.edge.reserve_s + one.study.after_s + 1e-6


def test_the_patient_one_is_late_where_the_link_is_slow() -> None:
    """But has everything then."""
    policy = routed("cloud only", "cloud only", cloud_only(), 64, patient=True)
    told = run(WORLD, policy, steady(Conditions(latency_ms=50, up_kbit=1000)), STUDIES[:3])
    assert min(one.took_s for one in told) > 10.0
    assert all(len(one.answered) == len(one.study.sightings) for one in told)


def test_what_is_owed_is_asked_for_when_the_link_is_back() -> None:
    """The link is dead for the first study; the amendments find what a good link would have."""
    good = Conditions(latency_ms=5, up_kbit=100_000)
    trace = Trace("back", (0.0, 15.0), (Conditions(state=State.RESET), good))
    late, never = (run(WORLD, OURS, one, STUDIES[:4]) for one in (trace, steady(good)))
    assert late[0].answered.keys() >= set(late[0].plan.uncertain)
    assert late[0].later_rois == len(late[0].plan.uncertain)
    assert [one.amended for one in late] == [one.amended for one in never]
    assert [one.amended_false for one in late] == [one.false for one in never]


def test_the_same_seed_gives_the_same_run() -> None:
    """Over a trace with jitter, stalls and retries."""
    one, two = (run(WORLD, OURS, find_trace("lte-poor"), STUDIES) for _ in range(2))
    assert [a.took_s for a in one] == [b.took_s for b in two]
