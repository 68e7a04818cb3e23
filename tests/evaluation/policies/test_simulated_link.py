import math

import pytest

from evaluation.links.proxy import BURST_BYTES
from evaluation.links.trace import Conditions, State, Trace, steady
from evaluation.policies.simulated_link import SimulatedCloud, SimulatedLink

ROI = 110_592

SLOW = Conditions(latency_ms=20, up_kbit=8000)  # 1 MB a second


def link(*spans: tuple[float, Conditions], repeat_s: float = 0.0) -> SimulatedLink:
    """Conditions by the time from which they hold, and a cloud that takes 10 ms for each ROI."""
    times_s, conditions = zip(*spans, strict=True)
    cloud = SimulatedCloud(((1, 0.01), (8, 0.08)), max_batch=8, max_batch_delay_s=0.0)
    return SimulatedLink(Trace("made", times_s, conditions, repeat_s), cloud, "0")


def down(state: State) -> Conditions:
    return Conditions(latency_ms=20, up_kbit=8000, state=state)


def test_an_roi_takes_bandwidth_round_trips_and_reading() -> None:
    """20 ms to connect, then 20 ms there and back; a burst goes at once."""
    wire = link((0.0, SLOW))
    sending_s = (ROI - BURST_BYTES) / 1e6
    first = wire.stream(1.0, [ROI], 9.0)
    assert first.answered_s[0] == pytest.approx(1.0 + 0.02 + sending_s + 0.02 + 0.01)
    assert first.ended_s == first.answered_s[0]
    assert (first.broke, first.rois, first.sent_bytes) == (False, 1, ROI)
    assert first.first_response_s == pytest.approx(0.04)
    again = wire.stream(5.0, [ROI], 9.0)
    assert again.first_response_s == pytest.approx(0.02)
    arrival = again.arrivals[0]
    assert (arrival.sent_bytes, arrival.compute_s) == (ROI, pytest.approx(0.01))
    assert arrival.transport_s == pytest.approx(sending_s + 0.02)


def test_a_stream_ends_at_the_deadline() -> None:
    stream = link((0.0, SLOW)).stream(0.0, [ROI] * 9, 0.4)
    assert list(stream.answered_s) == [0, 1, 2]
    assert (stream.ended_s, stream.broke, stream.rois) == (0.4, False, 4)


def test_a_reset_ends_a_stream_at_once() -> None:
    stream = link((0.0, down(State.RESET))).stream(1.0, [ROI], 9.0)
    assert (stream.broke, stream.sent_bytes) == (True, 0)
    assert stream.ended_s == pytest.approx(1.0, abs=0.01)
    later = link((0.0, SLOW), (1.3, down(State.RESET))).stream(1.0, [ROI] * 9, 9.0)
    assert (len(later.answered_s), later.broke, later.ended_s) == (2, True, 1.3)


def test_a_stall_holds_everything_back() -> None:
    stream = link((0.0, down(State.STALL)), (3.0, SLOW)).stream(1.0, [ROI], 9.0)
    assert stream.answered_s[0] == pytest.approx(3.0, abs=0.05)
    assert not stream.broke


@pytest.mark.parametrize("state", [State.BLACK_HOLE, State.HALF_OPEN])
def test_swallowed_rois_are_never_answered(state: State) -> None:
    wire = link((0.0, down(state)))
    assert wire.stream(1.0, [ROI], 9.0).ended_s == 9.0
    quiet = wire.stream(20.0, [ROI], 29.0, response_timeout_s=3.0)
    assert (quiet.ended_s, quiet.first_response_s, quiet.answered_s) == (23.0, 0.0, {})


def test_a_stream_that_lost_bytes_is_reset_when_the_state_is_over() -> None:
    wire = link((0.0, down(State.HALF_OPEN)), (3.0, SLOW))
    stream = wire.stream(1.0, [ROI], 9.0)
    assert (stream.broke, stream.ended_s) == (True, 3.0)
    assert wire.stream(4.0, [ROI], 9.0).first_response_s == pytest.approx(0.04)


def test_a_trace_that_repeats_goes_on() -> None:
    wire = link((0.0, SLOW), (4.0, down(State.RESET)), repeat_s=6.0)
    assert wire.stream(61.0, [ROI], 70.0).answered_s
    assert wire.stream(63.9, [ROI], 70.0).ended_s == pytest.approx(64.0)
    assert wire.stream(65.0, [ROI], 70.0).sent_bytes == 0


def test_a_health_check_measures_the_round_trip() -> None:
    cloud = SimulatedCloud(((1, 0.01),), max_batch=8, max_batch_delay_s=0.0)
    wire = SimulatedLink(steady(Conditions(latency_ms=30)), cloud, "0")
    assert wire.health_check_s(5.0, 2.0) == pytest.approx(0.03)
    assert wire.health_check_s(5.0, 0.01) is None
    assert link((0.0, down(State.RESET))).health_check_s(1.0, math.inf) is None
    assert link((0.0, down(State.BLACK_HOLE))).health_check_s(1.0, 2.0) is None


BATCHES = ((1, 0.03), (8, 0.10))  # t = 0.01 n + 0.02


def test_eight_share_a_batch() -> None:
    """A full batch is read at once, without a wait."""
    served = SimulatedCloud(BATCHES, max_batch=8, max_batch_delay_s=0.005).read([1.0] * 8, math.inf)
    assert [one.done_s for one in served if one] == pytest.approx([1.10] * 8)
    assert [one.compute_s for one in served if one] == pytest.approx([0.10] * 8)


def test_one_alone_waits_for_others_and_the_next_for_it() -> None:
    """5 ms, then 30 ms for one; the next begins when that is done. Late ones are not read."""
    cloud = SimulatedCloud(BATCHES, max_batch=8, max_batch_delay_s=0.005)
    first, second = cloud.read([1.0, 1.01], math.inf)
    assert first is not None
    assert second is not None
    assert first.done_s == pytest.approx(1.035)
    assert (second.queue_s, second.done_s) == (pytest.approx(0.025), pytest.approx(1.065))
    assert cloud.queue_s(1.05) == pytest.approx(0.015)
    idle = SimulatedCloud(BATCHES, max_batch=8, max_batch_delay_s=0.0)
    assert idle.read([1.0, math.inf], until_s=1.029) == [None, None]
    assert idle.queue_s(1.0) == 0.0
