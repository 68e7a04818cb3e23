"""What is believed of a link after answers, and after answers that did not come."""

from __future__ import annotations

import pytest

from edge.arrival import Arrival
from edge.estimate import PRIOR, LinkEstimate, Pace
from edge.evidence import HALF_LIFE_S
from edge.measured import Measured
from tests.edge.cases import HandClock

ROI, PAUSE_S = 48**3, 30.0
GOOD = Pace(round_trip_s=0.02, bytes_per_s=5e6, down_bytes_per_s=5e6, queue_s=0.01, roi_s=0.02)


def used(clock: HandClock, studies: int = 60, pace: Pace = GOOD) -> Measured:
    """A link over which so many studies of ten regions went at ``pace``."""
    measured = Measured(clock, HALF_LIFE_S)
    for _ in range(studies):
        good_study(measured, clock, pace)
    return measured


def good_study(measured: Measured, clock: HandClock, pace: Pace = GOOD) -> None:
    """Ten regions, all answered in one batch; then half a minute passes."""
    batch_s = 10 * pace.roi_s
    measured.take(
        [
            Arrival(
                sent_bytes=i * ROI,
                after_s=pace.round_trip_s + i * ROI / pace.bytes_per_s + pace.queue_s + batch_s,
                queue_s=pace.queue_s,
                compute_s=batch_s,
            )
            for i in range(1, 11)
        ],
        pace.round_trip_s,
    )
    clock.sleep(PAUSE_S)


def p95_s(measured: Measured, rois: int = 10) -> float:
    """For so many regions."""
    estimate = LinkEstimate(middle=measured.pace(0.5), slow=measured.pace(0.95))
    return estimate.completion_s(rois, rois * ROI)


@pytest.mark.parametrize("heard_s", [0.02, None])
def test_one_miss_is_forgiven_after_a_handful_of_good_studies(heard_s: float | None) -> None:
    """At once ten regions do not fit 8 s any more; after five studies they do as before."""
    clock = HandClock()
    measured = used(clock)
    assert p95_s(measured) < 1.0
    measured.slower_than(ROI, 8.0, heard_s, 1)
    assert p95_s(measured) > 7.9
    for _ in range(5):
        good_study(measured, clock)
    assert p95_s(measured) < 1.0


def test_misses_that_go_on_are_believed() -> None:
    """After six in a row five good studies are not enough."""
    clock = HandClock()
    measured = used(clock)
    for _ in range(6):
        measured.slower_than(ROI, 8.0, 0.02, 1)
        clock.sleep(PAUSE_S)
    for _ in range(5):
        good_study(measured, clock)
    assert p95_s(measured) > 7.9


def test_a_slow_cloud_is_no_slow_wire() -> None:
    """It was heard at once: the wait is a fixed one, and ten regions take little more than one."""
    clock = HandClock()
    measured = used(clock)
    measured.slower_than(ROI, 8.0, 0.02, 1)
    assert measured.pace(0.95).bytes_per_s == used(HandClock()).pace(0.95).bytes_per_s
    assert 7.9 < p95_s(measured, 1) < p95_s(measured, 10) < 8.6


def test_bytes_that_explain_the_wait_are_charged_with_it() -> None:
    """Over 20 kB/s one region takes 5.5 s: that 8 s were not enough is the wire's fault."""
    clock = HandClock()
    slow = Pace(0.02, 20_000, 5e6, 0.01, 0.02)
    measured = used(clock, pace=slow)
    measured.slower_than(ROI, 8.0, 0.02, 1)
    assert measured.pace(0.95).bytes_per_s == pytest.approx(ROI / 7.98, rel=0.01)
    assert measured.pace(0.95).queue_s < 0.1


def test_a_cloud_that_was_heard_late_lies_behind_a_slow_wire() -> None:
    """Its first sign took most of the wait."""
    measured = used(HandClock())
    measured.slower_than(ROI, 8.0, 5.0, 1)
    assert measured.pace(0.95).bytes_per_s == pytest.approx(ROI / 7.98, rel=0.01)


def test_the_queue_that_was_not_told_is_guessed_and_drains() -> None:
    """Whoever is cancelled is told nothing; 7.9 s waited in vain are a queue of 4.9 s 3 s later."""
    clock = HandClock()
    measured = used(clock)
    measured.slower_than(ROI, 8.0, 0.02, 1)
    assert measured.pace(0.5).queue_s == pytest.approx(7.9, abs=0.05)
    clock.sleep(3.0)
    assert measured.pace(0.5).queue_s == pytest.approx(4.9, abs=0.05)


def test_what_was_expected_to_take_so_long_teaches_nothing() -> None:
    """Seven regions read in a second each: the eighth is not late after 8 s."""
    clock = HandClock()
    measured = used(clock, pace=Pace(0.02, 5e6, 5e6, 0.01, 1.0))
    before = measured.pace(0.95)
    measured.slower_than(8 * ROI, 8.0, 0.02, 8)
    assert measured.pace(0.95) == before


def test_remembered_verdicts_do_not_make_a_cloud_fast() -> None:
    """Four streams of them leave what is known of queue, reading and answering as it was."""
    clock = HandClock()
    slow = Pace(0.02, 5e6, 5e6, 0.5, 0.25)
    measured = used(clock, studies=3, pace=slow)
    for _ in range(4):
        measured.take(
            [Arrival(ROI, 0.05, 0.0, 0.0, 500), Arrival(2 * ROI, 0.9, 0.0, 0.0, 999)], 0.02
        )
    middle = measured.pace(0.5)
    assert (middle.queue_s, middle.roi_s) == (0.5, pytest.approx(0.25))
    assert middle.down_bytes_per_s == PRIOR.down_bytes_per_s


def test_the_round_trip_is_not_known_before_it_was_measured() -> None:
    """What is merely believed of it is not told."""
    measured = Measured(HandClock(), HALF_LIFE_S)
    assert measured.round_trip_s is None
    measured.timed(0.4)
    assert measured.round_trip_s == 0.4
