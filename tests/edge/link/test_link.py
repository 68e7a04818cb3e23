import socket
import threading

import numpy as np
import pytest

from edge.link.channel import DIAGNOSE_EVERY_S, Diagnosis
from edge.link.estimate import Arrival, LinkEstimate, Pace
from edge.link.link import Link
from edge.settings.core import load_settings
from tests.edge.builders import HandClock

MB = 1_000_000


@pytest.fixture
def link(clock: HandClock) -> Link:
    return Link(clock=clock)


def arrivals(
    round_trip_s: float, bytes_per_s: float, count: int, queue_s: float = 0.1, batch_s: float = 0.2
) -> list[Arrival]:
    """What a link of these figures shows of a cloud that reads all regions in one batch."""
    sent = [(i + 1) * MB // 10 for i in range(count)]
    return [
        Arrival(s, round_trip_s + s / bytes_per_s + queue_s + batch_s, queue_s, batch_s)
        for s in sent
    ]


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
    first = Arrival(1000, 0.3, queue_s=0.1, compute_s=0.1)
    second = Arrival(2000, 1.3, queue_s=1.0, compute_s=0.1001)
    link.succeeded([first, second], response_s=0.1)
    assert link.estimate().middle.roi_s == pytest.approx(0.5, rel=0.01)


def test_queue_drains_until_the_cloud_says_otherwise(link: Link, clock: HandClock) -> None:
    link.queue_reported(3.0)
    clock.sleep(2.0)
    assert link.estimate().middle.queue_s == pytest.approx(1.0)
    clock.sleep(3.0)
    assert link.estimate().middle.queue_s == 0.0


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


def test_a_missed_deadline_teaches_how_slow_it_is_at_least(link: Link) -> None:
    """100 kB not answered in 5 s: the link carries less than 20 kB/s or so, until measured."""
    link.missed(100_000, 5.0)
    assert link.estimate().middle.bytes_per_s == pytest.approx(100_000 / 4.95)
    link.missed(100_000, 0.051)  # that says nothing: it was expected to take longer
    assert link.estimate().middle.bytes_per_s == pytest.approx(100_000 / 4.95)


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


def test_a_diagnosis_is_kept_for_a_while() -> None:
    """Each opens a connection, and a cloud that is down is checked every second."""
    clock, connections = HandClock(), list[None]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(None)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        diagnosis = Diagnosis(f"127.0.0.1:{server.getsockname()[1]}", load_settings(), clock)
        for _ in range(5):
            assert diagnosis.reason() == ""
        assert len(connections) == 1
        clock.now_s += DIAGNOSE_EVERY_S
        diagnosis.reason()
        assert len(connections) == 2
        server.shutdown(socket.SHUT_RDWR)
