from __future__ import annotations

import pytest

from edge.link import Arrival, Link, LinkEstimate
from tests.edge.cases import HandClock

MB = 1_000_000


def arrivals(round_trip_s: float, bytes_per_s: float, count: int) -> list[Arrival]:
    """What a link of these figures and a cloud that answers at once would show."""
    sent = [(i + 1) * MB // 10 for i in range(count)]
    return [
        Arrival(s, round_trip_s + s / bytes_per_s + 0.3, queue_s=0.1, compute_s=0.2) for s in sent
    ]


def test_round_trip_and_throughput_are_recovered() -> None:
    """Intercept and slope of transport time over bytes give the link's own figures back."""
    link = Link(clock=HandClock())
    link.succeeded(arrivals(0.08, 4 * MB, count=6))
    estimate = link.estimate()
    assert estimate.round_trip_s == pytest.approx(0.08, rel=1e-6)
    assert estimate.bytes_per_s == pytest.approx(4 * MB, rel=1e-6)


def test_estimate_is_pessimistic_among_what_was_seen() -> None:
    """Of fast and slow studies the estimate lies on the slow side."""
    link = Link(clock=HandClock())
    for round_trip_s in (0.01, 0.02, 0.03, 0.04, 0.2):
        link.succeeded(arrivals(round_trip_s, 4 * MB, count=4))
    assert link.estimate().round_trip_s == pytest.approx(0.04, rel=1e-6)


def test_cloud_time_of_a_region_is_shared_among_those_sent_together() -> None:
    """Ten regions that were all answered after 1.1 s cost 0.1 s each beyond the round trip."""
    link = Link(clock=HandClock())
    link.succeeded([Arrival(1000, 1.1, queue_s=0.0, compute_s=1.0)] * 10)
    assert link.estimate().roi_s == pytest.approx(0.1, rel=0.02)


def test_queue_drains_until_the_cloud_says_otherwise() -> None:
    """A queue of 3 s is one of 1 s after 2 s, and none after 5 s."""
    clock = HandClock()
    link = Link(clock=clock)
    link.queue_reported(3.0)
    clock.sleep(2.0)
    assert link.estimate().queue_s == pytest.approx(1.0)
    clock.sleep(3.0)
    assert link.estimate().queue_s == 0.0


def test_breaker_opens_after_failures_in_a_row_and_probes_after_the_cool_off() -> None:
    """Three failures close the link for 30 s; then it may be asked, and one failure is enough."""
    clock = HandClock()
    link = Link(failures=3, cool_off_s=30.0, clock=clock)
    for _ in range(3):
        assert link.estimate().available
        link.failed("Unreachable: refused")
    assert not link.estimate().available
    assert link.estimate().reason == "Unreachable: refused; not asked again for 30 s"
    clock.sleep(30.0)
    assert link.estimate().available
    link.failed("Unreachable: refused")
    assert not link.estimate().available


def test_success_forgets_the_failures() -> None:
    """Failures count only in a row."""
    link = Link(failures=2, clock=HandClock())
    link.failed("x")
    link.succeeded([])
    link.failed("x")
    assert link.estimate().available


def test_bad_measurements_never_close_the_link_for_good() -> None:
    """However slow the link was, one region is asked as long as there is time at all."""
    hopeless = LinkEstimate(round_trip_s=60.0, bytes_per_s=10.0, queue_s=60.0)
    assert hopeless.capacity(0.5, 100_000) == 1
    assert hopeless.capacity(0.0, 100_000) == 0


def test_capacity_is_what_expected_time_allows() -> None:
    """As many regions fit as their expected time stays within the budget."""
    link = LinkEstimate(round_trip_s=0.1, bytes_per_s=MB, queue_s=0.2, roi_s=0.05)
    count = link.capacity(2.0, 100_000)
    assert count == 17
    assert link.expected_s(17, 100_000) == pytest.approx(2.0)
