from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from edge.escalation.attempt import Race, Received, Stream, StreamTiming
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, InvalidRequest, OverreadError, Unreachable
from protos.messages import Verdict

LONG_S, NO_ROOM = 60.0, 99


class Scripted:
    """Says its verdicts and ends, with a fault or without; ``hangs`` until it is cancelled."""

    sent, load, timing = True, None, StreamTiming((), time.monotonic)

    def __init__(
        self, says: Sequence[int] = (), fault: Exception | None = None, *, hangs: bool = False
    ) -> None:
        self.says, self.fault, self.hangs = says, fault, hangs
        self.cancelled = threading.Event()

    def listen(self) -> Iterator[Received]:
        """What it was scripted to say."""
        for roi_id in self.says:
            yield Received(Verdict(roi_id, 0.9, 8.0, "m", 0.0, 0.0), 0.1, 100)
        if self.hangs:
            assert self.cancelled.wait(LONG_S)
        if self.fault is not None:
            raise self.fault

    def cancel(self) -> None:
        """Lets it end."""
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
        return received.message.roi_id == NO_ROOM

    race = Race(Deadline.after(deadline_s), take, lambda: len(answered) >= wants)
    fault = race.run(first, after_s, None if second is None else lambda: second, silence_s)
    return answered, fault, race


def test_one_runner_that_says_everything_needs_no_other() -> None:
    """All is answered, nothing is at fault, and the second was never opened."""
    second = Scripted([0, 1])
    answered, fault, race = raced(Scripted([0, 1]), second)
    assert (answered, fault, race.faults) == ({0, 1}, None, {})
    assert not second.cancelled.is_set()


def test_the_second_runs_when_the_first_is_slow_and_the_loser_is_cancelled() -> None:
    """The first hangs after one answer; the second brings the other, and the first is ended."""
    first, second = Scripted([0], hangs=True), Scripted([0, 1])
    answered, fault, race = raced(first, second, after_s=0.01)
    assert (answered, fault, race.faults) == ({0, 1}, None, {})
    assert first.cancelled.is_set()


def test_the_first_may_still_win() -> None:
    """Whoever brings the last answer wins: here the first, while the second hangs."""
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


def test_the_second_runs_at_once_when_the_first_fails() -> None:
    """Nobody waits for what cannot come; the fault of the first is kept for its link."""
    first = Scripted([0], Unreachable("gone"))
    answered, fault, race = raced(first, Scripted([1]))
    assert (answered, fault) == ({0, 1}, None)
    assert race.faults[first].reason == "gone"


def test_a_fault_of_the_caller_is_not_carried_elsewhere() -> None:
    """What is wrong with the request would be wrong anywhere."""
    answered, fault, _ = raced(Scripted([], InvalidRequest("no")), Scripted([0, 1]))
    assert answered == set()
    assert isinstance(fault, InvalidRequest)


def test_both_may_fail() -> None:
    """The fault of the last is told."""
    _, fault, race = raced(Scripted([], Unreachable("one")), Scripted([], Unreachable("two")))
    assert fault is not None
    assert fault.reason == "two"
    assert len(race.faults) == 2


def test_the_deadline_ends_it_and_cancels_who_runs() -> None:
    """What came is kept, both are cancelled, and the deadline is the fault of both."""
    first, second = Scripted([0], hangs=True), Scripted(hangs=True)
    answered, fault, race = raced(first, second, deadline_s=0.3, after_s=0.01)
    assert answered == {0}
    assert isinstance(fault, DeadlinePassed)
    assert set(race.faults) == {first, second}
    assert first.cancelled.is_set()
    assert second.cancelled.is_set()


def test_a_stream_that_ends_well_but_early_is_no_fault() -> None:
    """Without another to ask, the attempt ends without a fault and with questions open."""
    answered, fault, race = raced(Scripted([0]))
    assert (answered, fault, race.faults) == ({0}, None, {})


def test_a_stream_that_lingers_after_the_last_answer_is_cancelled() -> None:
    """It is listened to a moment longer, and no more."""
    first = Scripted([0, 1], hangs=True)
    answered, fault, race = raced(first)
    assert (answered, fault, race.faults) == ({0, 1}, None, {})
    assert first.cancelled.is_set()


def test_an_exception_of_our_own_is_not_swallowed() -> None:
    """What no contract foresees is raised in the caller's thread."""
    with pytest.raises(ZeroDivisionError):
        raced(Scripted([], ZeroDivisionError("by zero")))


def test_an_exception_of_our_own_leaves_no_runner_behind() -> None:
    """The other stream is ended too: nobody would listen to it any more."""
    first, second = Scripted(hangs=True), Scripted([], ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        raced(first, second, after_s=0.01)
    assert first.cancelled.is_set()


def test_silence_ends_the_attempt_long_before_the_deadline() -> None:
    """Nothing at all was heard: it is given up, and the fault says after how long."""
    first = Scripted(hangs=True)
    answered, fault, race = raced(first, silence_s=0.01)
    assert (answered, first.cancelled.is_set()) == (set(), True)
    assert isinstance(fault, DeadlinePassed)
    assert fault.reason == "no response from the cloud within 0.0 s"
    assert race.faults == {first: fault}


def test_one_word_is_enough_not_to_be_silent() -> None:
    """From then on only the deadline ends it."""
    first = Scripted([0], hangs=True)
    answered, fault, _race = raced(first, silence_s=0.05, deadline_s=0.2)
    assert answered == {0}
    assert isinstance(fault, DeadlinePassed)
    assert fault.reason == "the answer did not arrive before the deadline"


def test_silence_opens_the_second_first() -> None:
    """The other cloud is asked before anything is given up."""
    answered, fault, _race = raced(Scripted(hangs=True), Scripted([0, 1]), silence_s=0.01)
    assert (answered, fault) == ({0, 1}, None)


def test_a_first_without_room_opens_the_second_at_once() -> None:
    """Not when it is slow: it goes on beside it."""
    first, second = Scripted([NO_ROOM], hangs=True), Scripted([1])
    answered, fault, _ = raced(first, second)
    assert (answered, fault) == ({1, NO_ROOM}, None)
