"""What one stream sends, and when.

The measurements of one stream.
"""

from __future__ import annotations

import threading

import pytest

from edge.escalation.attempt import StreamTiming
from edge.escalation.rois import cut_rois
from edge.escalation.stream import RequestIterator
from protos.deadline import Deadline
from protos.messages import Header, Verdict
from tests.edge.builders import SHAPE, HandClock, box, plan_of

HEADER = Header("k", "", 1.0, 3)
LONG_S = 60.0


def sending(*, held: bool, within_s: float = LONG_S) -> RequestIterator:
    rois = cut_rois(plan_of(0.5, 0.45, 0.4), box(), SHAPE)
    return RequestIterator(HEADER, rois, Deadline.after(within_s), held=held)


class Taker:
    """Takes requests in a separate thread, as gRPC does; records the ROIs."""

    def __init__(self, taken_from: RequestIterator) -> None:
        self.rois: list[int] = []
        self.begun = threading.Event()
        self._from = taken_from
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for request in self._from.requests():
            if request.WhichOneof("request") == "roi":
                self.rois.append(request.roi.roi_id)
            self.begun.set()

    def ends(self) -> bool:
        self._thread.join(LONG_S / 2)
        return not self._thread.is_alive()


def test_an_roi_that_was_sent_is_not_refused() -> None:
    """Of three two are under way when the cloud says that it has room for one."""
    one = sending(held=False)
    requests = one.requests()
    sent = [next(requests) for _ in range(3)]
    assert [request.WhichOneof("request") for request in sent] == ["header", "roi", "roi"]
    assert [refusal.roi_id for refusal in one.admit(1)] == [2]
    assert list(requests) == []


def test_a_cloud_that_accepts_more_than_was_announced_refuses_nothing() -> None:
    assert sending(held=True).admit(9) == []


def test_the_deadline_lets_go_who_waits() -> None:
    taker = Taker(sending(held=True, within_s=0.01))
    assert taker.ends()
    assert taker.rois == []


def test_a_header_alone_is_not_a_sent_roi() -> None:
    """Regions that are held have not been sent; once they may go they have."""
    one = sending(held=True)
    taker = Taker(one)
    assert taker.begun.wait(LONG_S)
    assert not one.began
    one.admit(1)
    assert taker.ends()
    assert one.began


ROI = 48**3


def timing(clock: HandClock, *, held: bool = False) -> StreamTiming:
    return StreamTiming(cut_rois(plan_of(0.5, 0.45, 0.4), box(), SHAPE), clock, held=held)


@pytest.mark.parametrize(("held", "after_s"), [(True, 1.0), (False, 3.0)])
def test_the_wait_for_a_busy_cloud_is_no_slow_wire(held: bool, after_s: float) -> None:
    """Where regions were held for 2 s their time begins then; else with the stream."""
    clock = HandClock()
    one = timing(clock, held=held)
    clock.sleep(2.0)
    one.first_response(one.after_s)
    clock.sleep(1.0)
    verdict = Verdict(0, 0.9, 8.0, "m", 0.0, 0.1)
    one.arrived(verdict, one.received(verdict, 100))
    assert one.first_response_s == 2.0
    assert (one.sending_s, one.arrivals[0].after_s) == (after_s, after_s)


def test_the_first_response_is_older_than_the_certainty() -> None:
    """The round trip ends with the first response; held ROIs are sent after it."""
    clock = HandClock()
    one = timing(clock, held=True)
    clock.sleep(2.0)
    one.first_response(1.5)
    assert (one.first_response_s, one.sending_s) == (1.5, 0.0)


def test_bytes_are_counted_up_to_the_first_roi_without_an_answer() -> None:
    """The second of three: two regions; none where all were answered."""
    one = timing(HandClock())
    assert one.up_to_first({2, 1}) == (2, 2 * ROI)
    assert one.up_to_first(set()) == (0, 0)
