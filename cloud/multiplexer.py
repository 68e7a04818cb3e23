"""Puts the outcomes of one study together: given on as they finish, counted for the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from protos.codec import Outcome
from protos.deadline import Clock
from protos.messages import Summary, Verdict

T = TypeVar("T")


class Merger:
    """The open ends of one study's stream.

    Work is added while the study is received; `outcomes` ends when all that was added has
    finished and the merger is closed.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._began_s = clock, clock()
        self._ready: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._working: set[asyncio.Future[Any]] = set()
        self._closed = self._given_up = False
        self._answered: dict[int, bool] = {}

    def add(self, work: asyncio.Future[T], outcome: Callable[[asyncio.Future[T]], Outcome]) -> None:
        """Gives on the ``outcome`` of ``work`` when that has finished, cancelled by others or not.

        What ``outcome`` raises ends the study.
        """
        self._working.add(work)
        work.add_done_callback(partial(self._finished, outcome))
        if self._given_up:
            work.cancel()

    def put(self, outcome: Outcome) -> None:
        """Gives on an outcome that is there already."""
        self._ready.put_nowait(outcome)

    def close(self) -> None:
        """Says that nothing more will be added."""
        self._closed = True
        self._end_if_done()

    def fail(self, error: BaseException) -> None:
        """Ends the study with ``error``, which `outcomes` raises; unfinished work is given up."""
        self._ready.put_nowait(error)
        self.cancel()

    def cancel(self) -> None:
        """Gives up all work that has not finished, and what is still added."""
        self._given_up = True
        for work in self._working:
            work.cancel()

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """Verdicts and refusals as they finish, in no set order."""
        while (item := await self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._answered[item.roi_id] = isinstance(item, Verdict)
            yield item

    def summary(self) -> Summary:
        """How many ROIs were answered and refused, each by its last outcome, and the time since."""
        answered = sum(self._answered.values())
        refused = len(self._answered) - answered
        return Summary(answered, refused, self._clock() - self._began_s)

    def _finished(
        self, outcome: Callable[[asyncio.Future[T]], Outcome], work: asyncio.Future[T]
    ) -> None:
        self._working.discard(work)
        if not (self._given_up and work.cancelled()):
            try:
                self._ready.put_nowait(outcome(work))
            except Exception as error:  # the servicer meets it
                self._ready.put_nowait(error)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closed and not self._working:
            self._ready.put_nowait(None)
