"""One escalation: which clouds are asked in each attempt, and what their links learn of it.

It knows nothing of gRPC, nor of how often is tried: `edge.escalation.client` does.

One attempt at an answer: a first stream and, where it is slow or fails, a second beside it.

The first answer to each question wins, whoever brings it, and the loser is cancelled. It knows
nothing of gRPC: a runner is whatever can be listened to and cancelled.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from edge.escalation.rois import Exchange, no_room
from edge.escalation.stream import Conversation, Heard
from edge.link.link import Link
from protos.deadline import Deadline
from protos.errors import CallerFault, DeadlinePassed, LinkFault, OverreadError
from protos.messages import Verdict
from protos.metadata import Load

LAST_WORD_S = 0.02
"""How long the stream with the last answer is listened to for what it says of itself."""


class Runner(Protocol):
    """A stream that has been opened."""

    def listen(self) -> Iterator[Heard]:
        """What it says until it ends; raises `OverreadError` where it ends early."""

    def cancel(self) -> None:
        """Ends it."""


R = TypeVar("R", bound=Runner)


@dataclass(frozen=True, eq=False)
class _Word(Generic[R]):
    """What one runner said; nothing when it ended, with or without an exception."""

    runner: R
    said: Heard | None = None
    exception: Exception | None = None


class Race(Generic[R]):
    """The runners of one attempt, each followed by a thread, all heard by the caller's.

    Attributes:
        faults: of the runners that ended early, or had not ended at the deadline.

    Args:
        deadline: ends the attempt.
        take: files what a runner said; returns whether the second may be of use at once.
        done: whether everything is answered.
    """

    def __init__(
        self, deadline: Deadline, take: Callable[[R, Heard], bool], done: Callable[[], bool]
    ) -> None:
        self.faults: dict[R, OverreadError] = {}
        self._deadline, self._take, self._done = deadline, take, done
        self._running: list[R] = []
        self._heard: queue.SimpleQueue[_Word[R]] = queue.SimpleQueue()
        self._open_second: Callable[[], R | None] | None = None
        self._hedge = self._sign = self._deadline
        self._silence_s, self._quiet = math.inf, True

    def run(
        self,
        first: R,
        after_s: float,
        open_second: Callable[[], R | None] | None,
        silence_s: float = math.inf,
    ) -> OverreadError | None:
        """What ended the attempt before everything was answered, if it was a fault.

        Args:
            first: runs from the beginning.
            after_s: what it may take before it counts as slow.
            open_second: gives the other, once ``first`` is slow, has no room, or has failed by
                no fault of the caller's; or None.
            silence_s: the attempt ends where nothing at all was heard for so long.
        """
        self._open_second, self._silence_s = open_second, silence_s
        self._hedge = self._deadline.capped(after_s)
        self._start(first)
        fault = None
        try:
            while self._running:
                if (word := self._next()) is not None:
                    fault = self._hear(word)
                elif not self._hedged():
                    fault = self._out_of_time()
        finally:
            self._cancel(list(self._running))  # only where something was raised
        return None if self._done() else fault

    def _next(self) -> _Word[R] | None:
        """What is said next; None when it is time for something else."""
        left_s = self._deadline.remaining_s
        if self._done():
            left_s = min(left_s, LAST_WORD_S)
        else:
            left_s = min(left_s, self._hedge.remaining_s if self._open_second else left_s)
            left_s = min(left_s, self._sign.remaining_s if self._quiet else left_s)
        try:
            return self._heard.get(timeout=left_s)
        except queue.Empty:
            return None

    def _hear(self, word: _Word[R]) -> OverreadError | None:
        """Files one word; returns the fault that it tells of."""
        if word.said is not None:
            self._quiet = False
            if self._take(word.runner, word.said):
                self._hedged()
            if self._done():
                self._cancel(loser for loser in list(self._running) if loser is not word.runner)
            return None
        if word.runner not in self._running:
            return None  # it was cancelled
        self._running.remove(word.runner)
        if word.exception is None:
            return None
        if not isinstance(word.exception, OverreadError):
            raise word.exception
        self.faults[word.runner] = word.exception
        if not isinstance(word.exception, CallerFault):
            self._hedged()
        return word.exception

    def _hedged(self) -> bool:
        """Opens the second runner, if that may still help; whether there was one to open."""
        if self._open_second is None or self._done() or self._deadline.passed:
            return False
        open_second, self._open_second = self._open_second, None
        if (second := open_second()) is not None:
            self._start(second)
        return True

    def _out_of_time(self) -> OverreadError:
        fault = DeadlinePassed("the answer did not come in time")
        if self._quiet and not self._deadline.passed:
            fault = DeadlinePassed(f"there was no sign of the cloud within {self._silence_s:.1f} s")
        if not self._done():
            self.faults |= dict.fromkeys(self._running, fault)
        self._cancel(list(self._running))
        return fault

    def _cancel(self, runners: Iterable[R]) -> None:
        for runner in runners:
            self._running.remove(runner)
            runner.cancel()

    def _start(self, runner: R) -> None:
        self._running.append(runner)
        self._sign = self._deadline.capped(self._silence_s)
        threading.Thread(target=self._follow, args=(runner,), daemon=True).start()

    def _follow(self, runner: R) -> None:
        exception: Exception | None = None
        try:
            for said in runner.listen():
                self._heard.put(_Word(runner, said))
        except Exception as error:  # whatever it is, the caller's thread deals with it
            exception = error
        self._heard.put(_Word(runner, exception=exception))


class Stream(Runner, Protocol):
    """A stream to a cloud, what is measured on it, and what the cloud says of its own load."""

    @property
    def sent(self) -> bool:
        """Whether any of its regions were sent."""

    @property
    def conversation(self) -> Conversation:
        """When its regions were sent and their answers came."""

    @property
    def load(self) -> Load | None:
        """In trailing metadata, when it has ended; None where it tells none."""


@dataclass(frozen=True, eq=False)
class Way:
    """One address that gives second readings: how a stream to it is opened, and its link."""

    open: Callable[[Exchange, Deadline, str], Stream]
    link: Link


class Escalation:
    """One escalation through all its attempts; `close` it in the end, however it went.

    Args:
        ways: to the clouds; the first that lets one in is asked, the next is the hedge.
        exchange: the regions and their answers.
        deadline: for all of it.
        study_key: the same in every stream.
        counts: whether a deadline missed by a cloud that was heard counts against its link.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        exchange: Exchange,
        deadline: Deadline,
        study_key: str,
        *,
        counts: bool = True,
    ) -> None:
        self._exchange, self._deadline, self._study_key = exchange, deadline, study_key
        self._counts = counts
        self._untried = list(ways)
        self._entered: list[Way] = []
        self._streams: dict[Way, Stream] = {}
        self._links: dict[Stream, Link] = {}
        self._faults: dict[Stream, OverreadError] = {}

    def enter(self) -> bool:
        """Whether any link lets this escalation in."""
        return self._way(0) is not None

    def attempt(self) -> OverreadError | None:
        """One stream from its header to its end, and the hedge; returns what ended it early."""
        race = Race(self._deadline, self._take, lambda: not self._exchange.open)
        first = self._entered[0]
        silence_s = first.link.patience_s()
        fault = race.run(self._opened(first), self._slow_s(first), self._hedge, silence_s)
        self._faults |= race.faults
        self._exchange.close_left_over()
        return fault

    def close(self) -> None:
        """Tells every link that let this in how it went."""
        for way in self._entered:
            stream = self._streams.get(way)
            if stream is None:
                way.link.left()
            else:
                fault, unanswered = self._faults.get(stream), self._exchange.unanswered
                _learn(way.link, stream, fault, unanswered, counts=self._counts)

    def _way(self, number: int) -> Way | None:
        """The way of that number among those that let this in; it enters where it must."""
        while len(self._entered) <= number and self._untried:
            way = self._untried.pop(0)
            if way.link.enter():
                self._entered.append(way)
        return self._entered[number] if number < len(self._entered) else None

    def _opened(self, way: Way) -> Stream:
        stream = way.open(self._exchange, self._deadline, self._study_key)
        self._streams[way], self._links[stream] = stream, way.link
        return stream

    def _hedge(self) -> Stream | None:
        way = self._way(1)
        return None if way is None else self._opened(way)

    def _slow_s(self, way: Way) -> float:
        """What 19 of 20 such streams do not exceed."""
        rois = self._exchange.open.values()
        sent_bytes = sum(roi.voxels.nbytes for roi in rois)
        return way.link.estimate().completion_s(len(rois), sent_bytes)

    def _take(self, stream: Stream, heard: Heard) -> bool:
        """Files it; whether another cloud may have the room that this one lacks."""
        self._links[stream].sign()
        if (message := heard.message) is None:
            return False
        elsewhere = no_room(message) and self._way(1) is not None
        taken = self._exchange.take(message, elsewhere=elsewhere)
        if taken and isinstance(message, Verdict):
            stream.conversation.arrived(message, heard)
        return elsewhere


def _learn(
    link: Link, stream: Stream, fault: OverreadError | None, unanswered: Set[int], *, counts: bool
) -> None:
    """What one stream tells of its link: it brought verdicts, was too slow, or broke.

    A cloud that refuses is there all the same. One of which nothing was heard at all tells nothing
    of how fast its link is. One that lost to the hedge was slow at least, if any region was sent;
    so was one that brought something, but not all. What the cloud says of its queue goes before
    what is guessed of it.
    """
    conversation = stream.conversation
    heard_s, sending_s = conversation.heard_s, conversation.sending_s
    if isinstance(fault, LinkFault) and not isinstance(fault, DeadlinePassed):
        link.failed(f"{fault.kind}: {fault.reason}")
    elif conversation.arrivals:
        link.succeeded(conversation.arrivals, heard_s or 0.0)
        rois, sent_bytes = conversation.up_to_first(unanswered)
        if isinstance(fault, DeadlinePassed) and rois:
            link.slower_than(sent_bytes, sending_s, heard_s, rois)
    elif isinstance(fault, DeadlinePassed) and heard_s is None:
        link.failed(fault.reason)
    elif isinstance(fault, DeadlinePassed) and stream.sent:
        link.missed(conversation.first_bytes, sending_s, heard_s, counts=counts)
    elif fault is None and conversation.received_bytes == 0:
        if stream.sent:
            link.slower_than(conversation.first_bytes, sending_s, heard_s)
        link.left()
    else:
        link.succeeded(())
    if stream.load is not None:
        link.queue_reported(stream.load.queue_s)
