from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import pytest

from edge.escalation.attempt import Endpoint, Escalation, Race, Received, Stream, StreamTiming
from edge.escalation.client import Escalator
from edge.escalation.rois import RoiStates, cut_rois
from edge.link.link import Link
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, Draining, InvalidRequest, OverreadError, Unreachable
from protos.messages import Refusal, Roi, Verdict
from tests.edge.builders import SHAPE, HandClock, box, plan_of
from tests.edge.fake_cloud import FakeCloud, escalator, read, sure

LONG_S = 60.0


class Scripted:
    """Says its verdicts and ends, with a fault or without; ``hangs`` until it is cancelled."""

    sent, load, timing = True, None, StreamTiming((), time.monotonic)

    def __init__(
        self, says: Sequence[int] = (), fault: Exception | None = None, *, hangs: bool = False
    ) -> None:
        self.says, self.fault, self.hangs = says, fault, hangs
        self.cancelled = threading.Event()

    def listen(self) -> Iterator[Received]:
        for roi_id in self.says:
            yield Received(Verdict(roi_id, 0.9, 8.0, "m", 0.0, 0.0), 0.1, 100)
        if self.hangs:
            assert self.cancelled.wait(LONG_S)
        if self.fault is not None:
            raise self.fault

    def cancel(self) -> None:
        self.cancelled.set()


def raced(
    first: Scripted,
    second: Scripted | None = None,
    *,
    wants: int = 2,
    deadline_s: float = LONG_S,
    after_s: float = LONG_S,
    silence_s: float = LONG_S,
) -> tuple[set[int], OverreadError | None, Race]:
    """The answers that came to ``wants`` questions, and the fault."""
    answered: set[int] = set()

    def take(_stream: Stream, received: Received) -> bool:
        assert isinstance(received.message, Verdict)
        answered.add(received.message.roi_id)
        return False

    race = Race(Deadline.after(deadline_s), take, lambda: len(answered) >= wants)
    fault = race.run(first, after_s, None if second is None else lambda: second, silence_s)
    return answered, fault, race


def test_the_first_may_still_win() -> None:
    """The stream with the last answer wins: here the first, while the second hangs."""
    go = threading.Event()

    class Late(Scripted):
        def listen(self) -> Iterator[Received]:
            assert go.wait(LONG_S)
            yield from super().listen()

    class Herald(Scripted):
        def listen(self) -> Iterator[Received]:
            go.set()
            yield from super().listen()

    second = Herald(hangs=True)
    answered, fault, _ = raced(Late([0, 1]), second, after_s=0.01)
    assert (answered, fault) == ({0, 1}, None)
    assert second.cancelled.is_set()


def test_a_fault_of_the_caller_is_not_carried_elsewhere() -> None:
    """A wrong request would be wrong for any cloud."""
    answered, fault, _ = raced(Scripted([], InvalidRequest("no")), Scripted([0, 1]))
    assert answered == set()
    assert isinstance(fault, InvalidRequest)


def test_both_may_fail() -> None:
    _, fault, race = raced(Scripted([], Unreachable("one")), Scripted([], Unreachable("two")))
    assert fault is not None
    assert fault.reason == "two"
    assert len(race.faults) == 2


def test_the_deadline_ends_it_and_cancels_who_runs() -> None:
    """What came is kept, both are cancelled, and the deadline is the fault of both."""
    first, second = Scripted([0], hangs=True), Scripted(hangs=True)
    answered, fault, race = raced(first, second, deadline_s=1.5, after_s=0.01)
    assert answered == {0}
    assert isinstance(fault, DeadlinePassed)
    assert set(race.faults) == {first, second}
    assert first.cancelled.is_set()
    assert second.cancelled.is_set()


def test_a_stream_that_lingers_after_the_last_answer_is_cancelled() -> None:
    """It is listened to a moment longer, and no more."""
    first = Scripted([0, 1], hangs=True)
    answered, fault, race = raced(first)
    assert (answered, fault, race.faults) == ({0, 1}, None, {})
    assert first.cancelled.is_set()


def test_an_exception_of_our_own_leaves_no_runner_behind() -> None:
    """The other stream is ended too: its answers would not be used."""
    first, second = Scripted(hangs=True), Scripted([], ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        raced(first, second, after_s=0.01)
    assert first.cancelled.is_set()


def test_one_word_is_enough_not_to_be_silent() -> None:
    first = Scripted([0], hangs=True)
    answered, fault, _race = raced(first, silence_s=1.0, deadline_s=1.5)
    assert answered == {0}
    assert isinstance(fault, DeadlinePassed)
    assert fault.reason == "the answer did not arrive before the deadline"


def test_silence_opens_the_second_first() -> None:
    answered, fault, _race = raced(Scripted(hangs=True), Scripted([0, 1]), silence_s=0.01)
    assert (answered, fault) == ({0, 1}, None)


def hedged(
    first: str, other: str, link: Link, other_link: Link | None = None
) -> AbstractContextManager[Escalator]:
    return escalator(first, link, hedge=(other, other_link or Link()), max_attempts=1)


def test_slow_cloud_is_hedged_and_cancelled() -> None:
    """The other cloud answers under the same key; the first's stream is given up at once."""
    over, gone, link = threading.Event(), threading.Event(), Link()

    def stall(roi: Roi) -> Verdict | Refusal:
        over.wait(60)
        return sure(roi)

    with FakeCloud(answer=stall) as slow, FakeCloud() as fast:
        with hedged(slow.address, fast.address, link) as second:
            slow.on_end = gone.set
            came = read(second, 0.4, 0.5)
        assert gone.wait(30)  # long before its 60 s
        over.set()
    assert (sorted(came.verdicts), came.reason, came.attempts) == ([0, 1], "", 1)
    assert [header.study_key for header in slow.headers + fast.headers] == ["key-1", "key-1"]
    assert link.estimate().available


def test_fast_cloud_is_not_hedged() -> None:
    with FakeCloud() as fast, FakeCloud() as other:
        with hedged(fast.address, other.address, Link()) as second:
            came = read(second, 0.4)
        assert other.headers == []
    assert list(came.verdicts) == [0]


def test_only_open_rois_are_sent_to_the_other_cloud() -> None:
    with (
        FakeCloud(faults=[Draining("stopping")], fault_after=1) as first,
        FakeCloud() as other,
        hedged(first.address, other.address, Link()) as second,
    ):
        came = read(second, 0.5, 0.4)
    assert (first.asked, other.asked) == ([[0]], [[1]])
    assert (sorted(came.verdicts), came.reason) == ([0, 1], "")


def test_other_cloud_stands_in_for_one_that_cannot_be_reached() -> None:
    """Each link has its own breaker: with the first open, the other is used alone."""
    link, other_link = Link(failures=1), Link()
    with FakeCloud() as gone:
        pass
    with FakeCloud() as other, hedged(gone.address, other.address, link, other_link) as second:
        for _ in range(2):
            came = read(second, 0.4)
            assert list(came.verdicts) == [0]
        assert not link.estimate().available
        assert second.estimate().available
    assert len(other.headers) == 2


def test_what_the_first_cannot_answer_in_time_is_sent_to_the_other_at_once() -> None:
    """A busy cloud takes one of three; an idle one answers the others while that one is read."""
    asked, link = threading.Event(), Link(clock=lambda: 0.0)
    link.queue_reported(30.0)

    def slowly(roi: Roi) -> Verdict | Refusal:
        asked.wait(10)
        return sure(roi)

    def at_once(roi: Roi) -> Verdict | Refusal:
        asked.set()
        return sure(roi)

    with (
        FakeCloud(accepts=1, answer=slowly) as busy,
        FakeCloud(answer=at_once) as idle,
        hedged(busy.address, idle.address, link) as second,
    ):
        came = read(second, 0.5, 0.45, 0.4)
    assert (sorted(came.verdicts), came.refusals, came.reason) == ([0, 1, 2], {}, "")
    assert (busy.asked, len(idle.headers)) == ([[0]], 1)


def test_two_clouds_that_cannot_answer_in_time_end_it() -> None:
    """No wait for the deadline, and no ROI is sent twice."""
    link, other_link = Link(clock=lambda: 0.0), Link(clock=lambda: 0.0)
    link.queue_reported(30.0)
    other_link.queue_reported(30.0)
    with (
        FakeCloud(accepts=0) as first,
        FakeCloud(accepts=0) as other,
        hedged(first.address, other.address, link, other_link) as second,
    ):
        came = read(second, 0.5, 0.4)
    assert (came.verdicts, sorted(came.refusals)) == ({}, [0, 1])
    assert (len(first.headers), len(other.headers)) == (1, 1)
    assert came.reason.startswith("the cloud refused 2 ROIs: the cloud has too much work")


class Unheard:
    """A stream without a response for 8 s when the hedge has answered all."""

    load = None

    def __init__(self, exchange: RoiStates, clock: HandClock, *, sent: bool, answers: bool) -> None:
        self._rois, self._clock, self._answers = list(exchange.open.values()), clock, answers
        self.timing = StreamTiming(self._rois, clock, held=not sent)
        self.sent, self._over = sent, threading.Event()

    def listen(self) -> Iterator[Received]:
        if not self._answers:
            self._over.wait(60.0)
            return
        self._clock.sleep(8.0)
        yield self.timing.first_response(self.timing.after_s)
        for roi in self._rois:
            yield self.timing.received(sure(roi), 100)

    def cancel(self) -> None:
        self._over.set()


@pytest.mark.parametrize("sent", [True, False])
def test_bytes_that_were_never_sent_tell_nothing_of_the_wire(sent: bool) -> None:
    """A stream that lost to the hedge before any response bounds the link where it sent any."""
    clock, link = HandClock(), Link(clock=lambda: 0.0)
    exchange = RoiStates(cut_rois(plan_of(0.5), box(), SHAPE))
    link.responded()
    link.response_timeout_s = lambda: 60.0  # type: ignore[method-assign] # no silence counts

    def way(link: Link, *, sent: bool, answers: bool) -> Endpoint:
        return Endpoint(lambda e, _d, _k: Unheard(e, clock, sent=sent, answers=answers), link)

    ways = [way(link, sent=sent, answers=False), way(Link(), sent=True, answers=True)]
    escalation = Escalation(ways, exchange, Deadline.after(60.0), "key-1")
    assert escalation.enter()
    assert escalation.attempt() is None
    escalation.close()
    assert list(exchange.verdicts) == [0]
    unknown = Link().estimate().middle.bytes_per_s
    assert (link.estimate().middle.bytes_per_s < unknown) == sent
