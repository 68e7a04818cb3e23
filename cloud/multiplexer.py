"""The response multiplexer: sends the outcomes of one study as they finish, and counts them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from protos.codec import Outcome
from protos.deadline import Clock
from protos.messages import Summary, Verdict

T = TypeVar("T")


class ResponseMultiplexer:
    """The pending and finished outcomes of one study's stream.

    Work is added while ROIs are received; `outcomes` ends when all of it has finished and the
    multiplexer is closed.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._began_s = clock, clock()
        self._finished: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        self._pending: set[asyncio.Future[Any]] = set()
        self._closed = self._cancelled = False
        self._answered: dict[int, bool] = {}

    def add(self, work: asyncio.Future[T], outcome: Callable[[asyncio.Future[T]], Outcome]) -> None:
        """Send ``outcome(work)`` when ``work`` has finished, or was cancelled by another party.

        An exception of ``outcome`` ends the study.
        """
        self._pending.add(work)
        work.add_done_callback(partial(self._finish, outcome))
        if self._cancelled:
            work.cancel()

    @property
    def pending(self) -> int:
        """How many outcomes are still to come."""
        return len(self._pending)

    def put(self, outcome: Outcome) -> None:
        """Send an outcome that is known already."""
        self._finished.put_nowait(outcome)

    def close(self) -> None:
        """Signal that nothing more will be added."""
        self._closed = True
        self._end_if_done()

    def fail(self, error: BaseException) -> None:
        """End the study with ``error``, which `outcomes` raises, and cancel pending work."""
        self._finished.put_nowait(error)
        self.cancel()

    def cancel(self) -> None:
        """Cancel all pending work, and work that is added later."""
        self._cancelled = True
        for work in self._pending:
            work.cancel()

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """Yield verdicts and refusals as they finish, in any order."""
        while (item := await self._finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._answered[item.roi_id] = isinstance(item, Verdict)
            yield item

    def summary(self) -> Summary:
        """Return how many ROIs were answered and refused, by their last outcome, and the time."""
        answered = sum(self._answered.values())
        refused = len(self._answered) - answered
        return Summary(answered, refused, self._clock() - self._began_s)

    def _finish(
        self, outcome: Callable[[asyncio.Future[T]], Outcome], work: asyncio.Future[T]
    ) -> None:
        self._pending.discard(work)
        if not (self._cancelled and work.cancelled()):
            try:
                self._finished.put_nowait(outcome(work))
            except Exception as error:  # `outcomes` raises it in the servicer
                self._finished.put_nowait(error)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closed and not self._pending:
            self._finished.put_nowait(None)
