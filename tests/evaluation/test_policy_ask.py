"""Asking by a deadline, and asking without one."""

from __future__ import annotations

import random

import pytest

from edge.link.link import Link
from evaluation.policy_ask import ByDeadline, Clock, Patient
from evaluation.policy_cloud import SimulatedCloud
from evaluation.policy_link import SimulatedLink
from evaluation.trace import Conditions, State, Trace, steady

ROI = 110_592
GOOD = Conditions(latency_ms=20, up_kbit=80000)
REGIONS = [(7, ROI), (3, ROI)]


def wire(trace: Trace) -> SimulatedLink:
    """The trace with a cloud of 10 ms a region."""
    return SimulatedLink(trace, SimulatedCloud(((1, 0.01), (8, 0.08)), 8, 0.0), "0")


def by_deadline(trace: Trace, belief: Link | None = None, clock: Clock | None = None) -> ByDeadline:
    """With two attempts."""
    return ByDeadline(wire(trace), clock or Clock(), 2, random.Random(0), belief)


def test_places_are_answered_and_the_link_learns() -> None:
    """What is believed of it afterwards is what was measured."""
    clock = Clock()
    belief = Link(clock=clock)
    asked = by_deadline(steady(GOOD), belief, clock).ask(REGIONS, 8.0)
    assert (asked.answered, asked.rois, asked.sent_bytes) == ((7, 3), 2, 2 * ROI)
    assert clock.now_s == pytest.approx(0.08, abs=0.02)
    assert belief.estimate().silent_s == 0.0
    assert belief.estimate().middle.round_trip_s < 0.045


def test_what_did_not_come_in_time_is_slow_though_some_did() -> None:
    """One of two regions before a stall: the belief expects a pair to take longer than that."""
    good, stall = GOOD, Conditions(latency_ms=20, up_kbit=80000, state=State.STALL)
    clock = Clock()
    belief = Link(failures=1, clock=clock)
    asks = by_deadline(Trace("made", (0.0, 0.065, 30.0), (good, stall, good)), belief, clock)
    assert asks.ask(REGIONS, 8.0).answered == (7,)
    assert belief.estimate().available
    assert belief.estimate().completion_s(2, 2 * ROI) > 7.0


@pytest.mark.parametrize("counts", [True, False])
def test_a_miss_over_what_is_owed_does_not_open_the_breaker(counts: bool) -> None:
    """The cloud was heard, and the first region did not come: a study's miss counts."""
    stall = Conditions(latency_ms=20, up_kbit=80000, state=State.STALL)
    trace, clock = Trace("made", (0.0, 0.045, 30.0), (GOOD, stall, GOOD)), Clock()
    belief = Link(failures=1, clock=clock)
    asked = by_deadline(trace, belief, clock).ask(REGIONS, 2.0, counts=counts)
    assert asked.answered == ()
    assert belief.estimate().available == (not counts)


def test_a_connection_that_breaks_in_every_attempt_is_given_up() -> None:
    """Though the last of them answered a region before."""
    slow = Conditions(latency_ms=20, up_kbit=8000)
    reset = Conditions(latency_ms=20, up_kbit=8000, state=State.RESET)
    trace = Trace("made", (0.0, 0.19, 0.1905, 0.4, 0.4005), (slow, reset, slow, reset, slow))
    clock = Clock()
    belief = Link(failures=1, clock=clock)
    asked = by_deadline(trace, belief, clock).ask([*REGIONS, (5, ROI)], 8.0)
    assert asked.answered == (7, 3)
    assert not belief.estimate().available


def test_no_region_and_no_time_cost_nothing() -> None:
    """Nobody is asked."""
    assert by_deadline(steady(GOOD)).ask([], 8.0).rois == 0
    assert by_deadline(steady(GOOD)).ask(REGIONS, 0.0).rois == 0


def test_silence_opens_the_breaker() -> None:
    """Three in a row that heard nothing, then nobody is asked; without belief all the time goes."""
    hole = steady(Conditions(latency_ms=20, state=State.BLACK_HOLE))
    clock = Clock()
    belief = Link(clock=clock)
    asks = by_deadline(hole, belief, clock)
    spent_s = []
    for _ in range(4):
        began_s = clock.now_s
        assert asks.ask(REGIONS, began_s + 8.0).answered == ()
        spent_s.append(clock.now_s - began_s)
    assert spent_s[-1] == 0.0
    assert max(spent_s) < 8.0
    blind = Clock()
    by_deadline(hole, None, blind).ask(REGIONS, 8.0)
    assert blind.now_s == 8.0


def test_a_lost_connection_is_tried_again_with_what_is_open() -> None:
    """One region came before the reset, the other with the second attempt."""
    reset = Conditions(latency_ms=20, up_kbit=8000, state=State.RESET)
    slow = Conditions(latency_ms=20, up_kbit=8000)
    trace = Trace("made", (0.0, 0.19, 0.1905), (slow, reset, slow))
    asked = by_deadline(trace).ask(REGIONS, 8.0)
    assert asked.answered == (7, 3)
    assert asked.sent_bytes > 2 * ROI


def test_the_patient_one_gives_up_after_five_attempts() -> None:
    """Three seconds apart, whatever the deadline; nothing of what came counts by itself."""
    clock = Clock()
    patient = Patient(wire(steady(Conditions(state=State.RESET))), clock)
    assert patient.ask(REGIONS, 1.0).answered == ()
    assert clock.now_s == pytest.approx(4 * 3.0, abs=0.1)


def test_the_patient_one_waits_for_the_whole() -> None:
    """Far beyond the deadline."""
    clock = Clock()
    patient = Patient(wire(steady(Conditions(up_kbit=100))), clock)
    asked = patient.ask(REGIONS, 8.0)
    assert (asked.answered, asked.rois) == ((7, 3), 2)
    assert clock.now_s == pytest.approx(2 * ROI / 12500, rel=0.1)
    assert patient.ask([], 8.0).rois == 0
