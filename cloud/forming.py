"""When a batch is formed, and of whom; what has come too late by then is told so."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from cloud.queue import Queue, Ticket
from cloud.schedule import Pace, together
from protos.deadline import Clock
from protos.errors import DeadlinePassed, DeadlineUnmeetable, OverreadError


class Former:
    """Forms batches of what waits in ``queue``.

    Args:
        queue: of tickets.
        pace: what batches cost.
        max_wait_s: how long an ROI waits for company, at most; less when its deadline presses.
        coming: how many ROIs may still come on open streams: while there are none nobody is waited
            for. Not known if None.
        clock: monotonic seconds.

    Attributes:
        waited: whether the last batch had to be waited for.
    """

    def __init__(
        self,
        queue: Queue,
        pace: Pace,
        max_wait_s: float,
        coming: Callable[[], int] | None,
        clock: Clock,
    ) -> None:
        self._queue, self._pace, self._max_wait_s = queue, pace, max_wait_s
        self._coming, self._clock = coming, clock
        self._by_deadline = queue.rules.by_deadline
        self._arrived = asyncio.Event()
        self.waited = False

    def arrived(self) -> None:
        """Something has been put into the queue."""
        self._arrived.set()

    @property
    def ready(self) -> bool:
        """Whether a batch would be formed at once."""
        return self._patience_s() <= 0.0

    async def batch(self) -> list[Ticket]:
        """The next batch, as soon as it should wait no longer."""
        self.waited = False
        while True:
            while (left_s := self._patience_s()) > 0.0:
                self.waited = True
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                        await self._arrived.wait()
            self._drop_late()
            now_s = self._clock()
            if order := self._queue.in_order(now_s):
                n = together(order, now_s, self._pace) if self._by_deadline else self._pace.most
                return self._queue.take(n, now_s)

    def _patience_s(self) -> float:
        """How long what waits may wait for company.

        0 when a batch is full, time presses, or nobody is to come.
        """
        if not (waiting := self._queue.waiting()):
            return math.inf
        most = self._pace.worth() if self._by_deadline else self._pace.most
        alone = self._by_deadline and self._coming is not None and self._coming() == 0
        if len(waiting) >= most or alone:
            return 0.0
        patience_s = min(ticket.came_s for ticket in waiting) + self._max_wait_s - self._clock()
        if not self._by_deadline:
            return patience_s
        soonest_s = min(ticket.deadline.remaining_s for ticket in waiting)
        return min(patience_s, soonest_s - self._pace.answer.bound_s(len(waiting)))

    def _drop_late(self) -> None:
        """Tells those who cannot be answered in time any more, whatever is done."""
        if not self._by_deadline:
            return
        alone_s = self._pace.answer.bound_s(1)
        for ticket in self._queue.waiting():
            if ticket.tried and not ticket.deadline.passed:
                continue
            waited_s = self._clock() - ticket.came_s
            if ticket.deadline.passed:
                error: OverreadError = DeadlinePassed(f"time ran out after {waited_s:.3f} s")
            elif ticket.deadline.remaining_s < alone_s:
                left_s = ticket.deadline.remaining_s
                error = DeadlineUnmeetable(
                    f"after {waited_s:.3f} s {left_s:.3f} s are left, reading takes {alone_s:.3f}",
                    alone_s,
                )
            else:
                continue
            ticket.answer.set_exception(error)
