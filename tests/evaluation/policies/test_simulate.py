import random
from dataclasses import replace

import pytest

from cloud.settings import CloudSettings
from edge.link.link import Link
from edge.selection import Size
from edge.settings.core import EdgeSettings
from evaluation.links.trace import Conditions, State, Trace, find_trace, steady
from evaluation.policies.routing import band, cloud_only, edge_only, ours, plan_of, routed
from evaluation.policies.simulate import AgentClient, Clock, SednaClient, World, findings, run
from evaluation.policies.simulated_link import SimulatedCloud, SimulatedLink
from tests.evaluation.made_cases import THRESHOLDS, made_cases
from tests.evaluation.policies.test_routing import STUDY

ROI = 110_592

GOOD = Conditions(latency_ms=20, up_kbit=80000)
STALL = replace(GOOD, state=State.STALL)
SLOW = replace(GOOD, up_kbit=8000)
RESET = replace(SLOW, state=State.RESET)
ROIS = [(7, ROI), (3, ROI)]


def wire(trace: Trace) -> SimulatedLink:
    return SimulatedLink(trace, SimulatedCloud(((1, 0.01), (8, 0.08)), 8, 0.0), "0")


def by_deadline(trace: Trace, failures: int = 3) -> tuple[AgentClient, Link, Clock]:
    clock = Clock()
    link = Link(failures=failures, clock=clock)
    return AgentClient(wire(trace), clock, 2, random.Random(0), link), link, clock


def test_rois_are_answered_and_the_link_learns() -> None:
    client, link, clock = by_deadline(steady(GOOD))
    answer = client.request(ROIS, 8.0)
    assert (answer.answered, answer.rois, answer.sent_bytes) == ((7, 3), 2, 2 * ROI)
    assert clock.now_s == pytest.approx(0.08, abs=0.02)
    assert link.estimate().silent_s == 0.0
    assert link.estimate().middle.round_trip_s < 0.045


def test_partial_answers_in_time_still_count_as_slow() -> None:
    """One of two ROIs before a stall: the link expects a pair to take longer than that."""
    client, link, _ = by_deadline(Trace("made", (0.0, 0.065, 30.0), (GOOD, STALL, GOOD)), 1)
    assert client.request(ROIS, 8.0).answered == (7,)
    assert link.estimate().available
    assert link.estimate().completion_s(2, 2 * ROI) > 7.0


@pytest.mark.parametrize("counts", [True, False])
def test_a_missed_retry_does_not_open_the_breaker(counts: bool) -> None:
    client, link, _ = by_deadline(Trace("made", (0.0, 0.045, 30.0), (GOOD, STALL, GOOD)), 1)
    assert client.request(ROIS, 2.0, counts=counts).answered == ()
    assert link.estimate().available == (not counts)


def test_a_connection_that_breaks_in_every_attempt_is_given_up() -> None:
    trace = Trace("made", (0.0, 0.19, 0.1905, 0.4, 0.4005), (SLOW, RESET, SLOW, RESET, SLOW))
    client, link, _ = by_deadline(trace, 1)
    assert client.request([*ROIS, (5, ROI)], 8.0).answered == (7, 3)
    assert not link.estimate().available


def test_without_rois_or_time_nothing_is_sent() -> None:
    for client in (by_deadline(steady(GOOD))[0], SednaClient(wire(steady(GOOD)), Clock())):
        assert client.request([], 8.0).rois == 0
    assert by_deadline(steady(GOOD))[0].request(ROIS, 0.0).rois == 0


def test_silence_opens_the_breaker() -> None:
    """After three requests without a response none is made; without a link all time is spent."""
    hole = steady(Conditions(latency_ms=20, state=State.BLACK_HOLE))
    client, _, clock = by_deadline(hole)
    spent_s = []
    for _ in range(4):
        began_s = clock.now_s
        assert client.request(ROIS, began_s + 8.0).answered == ()
        spent_s.append(clock.now_s - began_s)
    assert spent_s[-1] == 0.0
    assert max(spent_s) < 8.0
    blind = Clock()
    AgentClient(wire(hole), blind, 2, random.Random(0), None).request(ROIS, 8.0)
    assert blind.now_s == 8.0


def test_open_rois_are_retried_after_a_lost_connection() -> None:
    client, *_ = by_deadline(Trace("made", (0.0, 0.19, 0.1905), (SLOW, RESET, SLOW)))
    answer = client.request(ROIS, 8.0)
    assert answer.answered == (7, 3)
    assert answer.sent_bytes > 2 * ROI


def test_sedna_s_client_gives_up_after_five_attempts() -> None:
    clock = Clock()
    sedna = SednaClient(wire(steady(Conditions(state=State.RESET))), clock)
    assert sedna.request(ROIS, 1.0).answered == ()
    assert clock.now_s == pytest.approx(4 * 3.0, abs=0.1)


def test_sedna_s_client_waits_for_all_verdicts() -> None:
    clock = Clock()
    sedna = SednaClient(wire(steady(Conditions(up_kbit=100))), clock)
    answer = sedna.request(ROIS, 8.0)
    assert (answer.answered, answer.rois) == ((7, 3), 2)
    assert clock.now_s == pytest.approx(2 * ROI / 12500, rel=0.1)


WORLD = World(made_cases(), EdgeSettings(audit_rate=0.0), CloudSettings(), every_s=20.0, seed=0)
STUDIES = WORLD.cases.of("test")
OURS = ours(THRESHOLDS, WORLD.edge, "ours")
FIXED = routed("fixed", "fixed threshold", band(0.15, 0.85), 64)
DEAD = steady(Conditions(state=State.RESET))


def test_findings_are_the_agent_s_own_merge() -> None:
    plan = plan_of(band(0.15, 0.85)(STUDY), STUDY, 64)
    verdicts = {1: Size.FULL, 3: Size.FULL}
    assert sorted(findings(STUDY, plan, verdicts, THRESHOLDS)) == [0, 3]
    assert sorted(findings(STUDY, plan, {}, THRESHOLDS)) == [0, 1]


def test_without_a_cloud_all_report_as_the_edge_alone() -> None:
    alone = run(WORLD, routed("edge", "edge only", edge_only(0.3), 64), DEAD, STUDIES)
    own = run(WORLD, OURS, DEAD, STUDIES)
    assert [one.found for one in own] == [one.found for one in alone]
    slower_s = [a.took_s - b.took_s for a, b in zip(own, alone, strict=True)]
    assert max(slower_s) < 0.05
    assert sum(one.rois + one.later_rois for one in own) == 0


def test_over_a_good_link_ours_finds_what_its_band_finds() -> None:
    fibre = find_trace("fibre")
    own, fixed = (run(WORLD, policy, fibre, STUDIES) for policy in (OURS, FIXED))
    assert [one.found for one in own] == [one.found for one in fixed]
    assert max(one.took_s for one in own) < 3.0


@pytest.mark.parametrize("name", ["lte-poor", "flapping", "half-open", "black-hole", "dsl"])
def test_ours_keeps_the_deadline_whatever_the_link(name: str) -> None:
    for one in run(WORLD, OURS, find_trace(name), STUDIES):
        assert one.took_s <= WORLD.edge.deadline_s - WORLD.edge.reserve_s + one.study.after_s + 1e-6


def test_sedna_s_client_is_late_over_a_slow_link() -> None:
    policy = routed("cloud only", "cloud only", cloud_only(), 64, without_deadline=True)
    told = run(WORLD, policy, steady(Conditions(latency_ms=50, up_kbit=1000)), STUDIES[:3])
    assert min(one.took_s for one in told) > 10.0
    assert all(len(one.answered) == len(one.study.sightings) for one in told)


def test_pending_reads_are_retried_when_the_link_is_up_again() -> None:
    good = Conditions(latency_ms=5, up_kbit=100_000)
    trace = Trace("back", (0.0, 15.0), (Conditions(state=State.RESET), good))
    late, never = (run(WORLD, OURS, one, STUDIES[:4]) for one in (trace, steady(good)))
    assert late[0].answered.keys() >= set(late[0].plan.uncertain)
    assert late[0].later_rois == len(late[0].plan.uncertain)
    assert [one.amended for one in late] == [one.amended for one in never]
    assert [one.amended_false for one in late] == [one.false for one in never]


def test_the_same_seed_gives_the_same_run() -> None:
    one, two = (run(WORLD, OURS, find_trace("lte-poor"), STUDIES) for _ in range(2))
    assert [a.took_s for a in one] == [b.took_s for b in two]
