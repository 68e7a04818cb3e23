"""One attempt at an answer: a first stream and, where it is slow or fails, a second beside it.

The first answer to each question wins, whoever brings it, and the loser is cancelled. It knows
nothing of gRPC: a runner is whatever can be listened to and cancelled.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from edge.conversation import Heard
from protos.deadline import Deadline
from protos.errors import CallerFault, DeadlinePassed, OverreadError

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
        self,
        deadline: Deadline,
        take: Callable[[R, Heard], bool],
        done: Callable[[], bool],
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
