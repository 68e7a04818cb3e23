"""What a link is taken for after answers, and after missing answers, and when it is asked."""

import numpy as np
import pytest

from edge.link.estimate import (
    OFF,
    PRIOR,
    Arrival,
    DecayingQuantiles,
    LinkEstimate,
    Measurements,
    Pace,
)
from edge.link.link import Link
from tests.edge.builders import HandClock

MB = 1_000_000


def test_a_steady_link_takes_the_time_of_a_flow_line() -> None:
    """The slowest stage counts for every ROI, the others once, beside round trip and queue."""
    link = LinkEstimate.steady(Pace(0.1, MB, 1e12, queue_s=0.2, roi_s=0.05))
    assert link.completion_s(10, 1_000_000, 0.5) == pytest.approx(0.1 + 0.2 + 10 * 0.1 + 0.05)
    assert link.completion_s(10, 100_000, 0.95) == pytest.approx(0.1 + 0.2 + 10 * 0.05 + 0.01)
    # one ROI is sent, read and answered one after the other
    link = LinkEstimate.steady(Pace(0.1, MB, 5120.0, queue_s=0.0, roi_s=0.3))
    assert link.completion_s(1, 500_000, 0.5) == pytest.approx(0.1 + 0.5 + 0.3 + 0.1)


def test_slow_parts_add_as_squares() -> None:
    middle = Pace(0.1, 1e12, 1e12, queue_s=0.1, roi_s=0.0)
    slow = Pace(0.4, 1e12, 1e12, queue_s=0.5, roi_s=0.0)
    link = LinkEstimate(middle=middle, slow=slow)
    assert link.completion_s(1, 1, 0.95) == pytest.approx(0.2 + 0.5, abs=1e-6)
    assert link.completion_s(1, 1, 0.5) == pytest.approx(0.2, abs=1e-6)
    assert link.completion_s(1, 1, 0.99) > 0.7


ROI, PAUSE_S = 48**3, 30.0
GOOD = Pace(round_trip_s=0.02, bytes_per_s=5e6, down_bytes_per_s=5e6, queue_s=0.01, roi_s=0.02)


def arrivals(
    round_trip_s: float,
    bytes_per_s: float,
    count: int,
    queue_s: float = 0.1,
    batch_s: float = 0.2,
    roi_bytes: int = MB // 10,
) -> list[Arrival]:
    """What a link of these figures shows of a cloud that reads all regions in one batch."""
    sent = [i * roi_bytes for i in range(1, count + 1)]
    return [
        Arrival(s, round_trip_s + s / bytes_per_s + queue_s + batch_s, queue_s, batch_s)
        for s in sent
    ]


def used(clock: HandClock, studies: int = 60, pace: Pace = GOOD) -> Measurements:
    """A link over which that many studies of ten ROIs were sent at ``pace``."""
    measured = Measurements(clock)
    for _ in range(studies):
        good_study(measured, clock, pace)
    return measured


def good_study(measured: Measurements, clock: HandClock, pace: Pace = GOOD) -> None:
    """Ten regions, all answered in one batch; then half a minute passes."""
    came = arrivals(pace.round_trip_s, pace.bytes_per_s, 10, pace.queue_s, 10 * pace.roi_s, ROI)
    measured.add_stream(came, pace.round_trip_s)
    clock.sleep(PAUSE_S)


@pytest.fixture
def measured(clock: HandClock) -> Measurements:
    return used(clock)


def p95_s(measured: Measurements, rois: int = 10) -> float:
    estimate = LinkEstimate(middle=measured.pace(0.5), slow=measured.pace(0.95))
    return estimate.completion_s(rois, rois * ROI)


@pytest.mark.parametrize("response_s", [0.02, None])
def test_one_miss_is_forgiven_after_a_handful_of_good_studies(
    response_s: float | None, measured: Measurements, clock: HandClock
) -> None:
    """At once ten regions do not fit 8 s any more; after five studies they do as before."""
    assert p95_s(measured) < 1.0
    measured.add_bound(ROI, 8.0, response_s, 1)
    assert p95_s(measured) > 7.9
    for _ in range(5):
        good_study(measured, clock)
    assert p95_s(measured) < 1.0


def test_bytes_that_explain_the_wait_are_charged_with_it(
    measured: Measurements, clock: HandClock
) -> None:
    """Over 20 kB/s one region takes 5.5 s: that 8 s were not enough is the wire's fault.

    So it is where the cloud responded late.
    """
    slow = used(clock, pace=Pace(0.02, 20_000, 5e6, 0.01, 0.02))
    for link, response_s in ((slow, 0.02), (measured, 5.0)):
        link.add_bound(ROI, 8.0, response_s, 1)
        assert link.pace(0.95).bytes_per_s == pytest.approx(ROI / 7.98, rel=0.01)
        assert link.pace(0.95).queue_s < 0.1


def test_what_was_expected_to_take_so_long_teaches_nothing(clock: HandClock) -> None:
    """Seven regions read in a second each: the eighth is not late after 8 s."""
    measured = used(clock, pace=Pace(0.02, 5e6, 5e6, 0.01, 1.0))
    before = measured.pace(0.95)
    measured.add_bound(8 * ROI, 8.0, 0.02, 8)
    assert measured.pace(0.95) == before


def test_remembered_verdicts_do_not_make_a_cloud_fast(clock: HandClock) -> None:
    slow = Pace(0.02, 5e6, 5e6, 0.5, 0.25)
    measured = used(clock, studies=3, pace=slow)
    for _ in range(4):
        measured.add_stream(
            [Arrival(ROI, 0.05, 0.0, 0.0, 500), Arrival(2 * ROI, 0.9, 0.0, 0.0, 999)], 0.02
        )
    middle = measured.pace(0.5)
    assert (middle.queue_s, middle.roi_s) == (0.5, pytest.approx(0.25))
    assert middle.down_bytes_per_s == PRIOR.down_bytes_per_s


@pytest.mark.parametrize("value", [0.1, 2.0, 9.0])
def test_one_measurement_moves_the_median_but_not_the_tail(value: float) -> None:
    """The median is what was seen; the slow side is the slower of that and the prior's."""
    evidence = DecayingQuantiles((1.0, 4.0), HandClock())
    assert (evidence.quantile(0.5), evidence.quantile(0.95)) == (1.0, 4.0)
    evidence.add(value)
    assert evidence.quantile(0.5) == value
    assert evidence.quantile(0.95) == max(value, 4.0)


@pytest.mark.parametrize(("bounds", "measurements"), [(1, 5), (9, 20)])
def test_bounds_expire_after_five_measurements_each_and_at_most_twenty(
    bounds: int, measurements: int
) -> None:
    evidence = DecayingQuantiles((1.0, 1.0), HandClock())
    for _ in range(10):
        evidence.add(2.0)
    for _ in range(bounds):
        evidence.add_bound(9.0)
    for _ in range(measurements):
        assert evidence.quantile(0.95) == 9.0
        evidence.add(2.0)
    assert evidence.quantile(0.95) == 2.0


@pytest.mark.parametrize(
    ("silent_s", "since"),
    [
        (None, "; no answer yet since this program started"),
        (9.0, ""),
        (45.0, "; its last answer came 45 s ago"),
        (720.0, "; its last answer came 12 min ago"),
        (3 * 3600.0, "; its last answer came 3 h ago"),
        (5 * 86400.0, "; its last answer came 5 days ago"),
    ],
)
def test_a_link_that_is_down_says_since_when(silent_s: float | None, since: str) -> None:
    link = LinkEstimate(available=False, reason="the cloud cannot be reached", silent_s=silent_s)
    assert link.why_not == f"the cloud cannot be reached{since}"
    assert (LinkEstimate().why_not, OFF.why_not) == ("", "no second reader is configured")


@pytest.fixture
def link(clock: HandClock) -> Link:
    return Link(clock=clock)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_round_trip_and_throughput_are_recovered(count: int, link: Link) -> None:
    """From one ROI on: the first response is the round trip, the rest is sending."""
    link.succeeded(arrivals(0.08, 4 * MB, count), response_s=0.08)
    middle = link.estimate().middle
    assert middle.round_trip_s == pytest.approx(0.08)
    assert middle.bytes_per_s == pytest.approx(4 * MB)
    assert middle.queue_s == pytest.approx(0.1)


def test_cloud_time_of_an_roi_is_shared_among_those_sent_together(link: Link) -> None:
    link.succeeded([Arrival(1000, 9.0, queue_s=0.0, compute_s=1.0)] * 10, response_s=8.0)
    assert link.estimate().middle.roi_s == pytest.approx(0.1)


def test_a_cloud_that_serves_others_between_is_slow(link: Link) -> None:
    link.succeeded([Arrival(1000, 0.3, 0.1, 0.1), Arrival(2000, 1.3, 1.0, 0.1001)], response_s=0.1)
    assert link.estimate().middle.roi_s == pytest.approx(0.5, rel=0.01)


def test_queue_drains_until_the_cloud_says_otherwise(link: Link, clock: HandClock) -> None:
    link.queue_reported(3.0)
    for pause_s, left_s in ((2.0, 1.0), (3.0, 0.0)):
        clock.sleep(pause_s)
        assert link.estimate().middle.queue_s == pytest.approx(left_s)


def test_old_measurements_are_forgotten(link: Link, clock: HandClock) -> None:
    """A link that was terrible in the morning is an unknown one in the evening."""
    for _ in range(9):
        link.succeeded(arrivals(3.0, 10_000, count=2), response_s=3.0)
    assert link.estimate().middle.round_trip_s == pytest.approx(3.0)
    clock.sleep(8 * 3600)
    estimate = link.estimate()
    assert (estimate.middle, estimate.slow) == (LinkEstimate().middle, LinkEstimate().slow)


def test_breaker_opens_after_failures_in_a_row_and_probes_after_the_cool_off(
    link: Link, clock: HandClock
) -> None:
    """Three failures open it for 30 s; then it may be asked, and one failure is enough."""
    link.failed("x")
    link.failed("x")
    link.succeeded(())  # what failed before counts no more
    for _ in range(3):
        assert link.enter()
        link.failed("Unreachable: refused")
    assert link.estimate().reason == "Unreachable: refused; next attempt in 30 s"
    for _ in range(2):
        clock.sleep(29.0)
        assert not link.estimate().available
        assert not link.enter()
        clock.sleep(1.0)
        assert link.estimate().available
        assert link.estimate().probing
        assert link.enter()
        link.failed("DeadlinePassed: late")


def test_only_one_escalation_probes(link: Link, clock: HandClock) -> None:
    """Until an inconclusive one has ended; a success closes the breaker as if nothing had been."""
    for _ in range(3):
        link.failed("x")
    clock.sleep(30.0)
    for _ in range(3):
        assert [link.enter() for _ in range(4)] == [True, False, False, False]
        assert link.estimate().reason == "x; another study is testing whether it is back"
        link.inconclusive()
        assert link.estimate().probing
    assert link.enter()
    link.succeeded(())
    link.failed("x")
    assert not link.estimate().probing
    assert [link.enter() for _ in range(2)] == [True, True]


def test_predicted_95th_percentile_holds_as_often_as_it_says() -> None:
    draw, clock = np.random.default_rng(5), HandClock()
    link, within = Link(clock=clock), []
    for study in range(450):
        rois = int(draw.integers(1, 12))
        pace = Pace(
            round_trip_s=0.04 * draw.lognormal(0, 0.4),
            bytes_per_s=MB * draw.lognormal(0, 0.4),
            down_bytes_per_s=MB,
            queue_s=0.02 * draw.lognormal(0, 0.8),
            roi_s=0.03 * draw.lognormal(0, 0.3),
        )
        took_s = LinkEstimate.steady(pace).completion_s(rois, rois * 100_000)
        if study >= 50:
            within.append(took_s <= link.estimate().completion_s(rois, rois * 100_000))
        seen = arrivals(pace.round_trip_s, pace.bytes_per_s, rois, pace.queue_s, rois * pace.roi_s)
        link.succeeded(seen, response_s=pace.round_trip_s)
        clock.sleep(20.0)
    assert 0.90 <= np.mean(within) <= 1.0


def test_patience_with_a_silent_cloud(link: Link, clock: HandClock) -> None:
    """One that never responded may have to be connected to; a near one answers within 1 s."""
    assert link.response_timeout_s() == 3.0
    link.up(0.01)
    assert link.response_timeout_s() == 1.0
    for _ in range(20):
        clock.sleep(60.0)
        link.up(0.6)
    assert link.response_timeout_s() == pytest.approx(2.4)
    clock.sleep(61.0)
    assert link.response_timeout_s() == 3.0
