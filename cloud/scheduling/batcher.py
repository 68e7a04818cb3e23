"""Batches are formed of what waits, the earliest deadline first, and what came too late is told.

What cannot be answered in time is refused at once, with an estimate; what was given up or has
run out of time while it waited is never read.

When a batch is formed, and of whom; what has come too late by then is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import structlog

from cloud.scheduling.admission import Gate
from cloud.scheduling.cost import CostModel
from cloud.scheduling.planner import Pace, together
from cloud.scheduling.queue import UNKNOWN_SITE, Answer, Claim, Queue, Rules, Ticket
from cloud.telemetry import Telemetry
from cloud.workers import Stage, Timed, Unwanted
from imaging.volume import UInt8Array
from protos.deadline import Clock, Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed, OverreadError
from protos.messages import Priority


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


_log = structlog.get_logger(__name__)


class Batcher:
    """Feeds one stage from one queue; runs while it is entered as an async context.

    Args:
        stage: what reads the batches.
        telemetry: where batches and waits are counted.
        max_batch: ROIs read at once, at most.
        max_wait_s: how long an ROI waits for company, at most; less when its deadline presses.
        max_waiting: ROIs that may wait in all.
        rules: the order of the queue; first come, first served knows no deadline: it refuses
            nothing and fills every batch.
        cost: what batches are expected to take; learns from each.
        coming: how many ROIs may still come on streams that are open: while there are none nobody
            is waited for. Not known if None.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        stage: Stage,
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_wait_s: float,
        max_waiting: int,
        rules: Rules | None = None,
        cost: CostModel | None = None,
        coming: Callable[[], int] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stage, self._telemetry, self._clock = stage, telemetry, clock
        cost = cost or CostModel()
        self._pace = Pace(cost, copy.deepcopy(cost), max_batch)
        self._queue = Queue(rules)
        self._former = Former(self._queue, self._pace, max_wait_s, coming, clock)
        self._gate = Gate(self._queue, self._pace, max_waiting, clock)
        self._batches = self._failures = 0
        self._loop: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = [*self._reading, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for ticket in self._queue.waiting():
            ticket.answer.cancel()

    async def watched(self) -> None:
        """Lasts as long as batches are formed, and raises what ends that."""
        if self._loop is not None:
            await asyncio.shield(self._loop)

    async def warm_up(self, roi_shape: tuple[int, int, int]) -> None:
        """Reads empty batches, so that the first study meets a warm engine and a known cost.

        Raises:
            ModelFailed: the model cannot read even that.
        """
        for n, counts in ((1, False), (1, True), (self._pace.most, True)):
            await self._stage.enter()
            began_s = self._clock()
            await self._stage.run(np.zeros((n, *roi_shape), np.uint8))
            if counts:
                self._pace.answer.observe(n, self._clock() - began_s)
                self._pace.entrance.observe(n, self._clock() - began_s)

    @property
    def waiting(self) -> int:
        """ROIs that wait to be read."""
        return len(self._queue)

    @property
    def queue_s(self) -> float:
        """How long a routine ROI that came now, with time to spare, would wait, in seconds."""
        return self._gate.queue_s

    @property
    def line(self) -> tuple[float, float]:
        """What a batch is expected to take: seconds whatever its size, and for each ROI."""
        return self._pace.answer.line

    def check(
        self, deadline: Deadline, priority: Priority, site: str = UNKNOWN_SITE, rois: int = 1
    ) -> int:
        """How many of so many ROIs could be answered in time if they came now: `Gate.check`."""
        return self._gate.check(deadline, priority, site, rois)

    def submit(
        self,
        voxels: Callable[[], UInt8Array],
        deadline: Deadline,
        priority: Priority,
        site: str = UNKNOWN_SITE,
    ) -> asyncio.Future[Answer]:
        """The answer to come for ``voxels`` uint8 ``(z, y, x)``; cancel it to give it up.

        They are asked for once the ROI is let in: what they cost is not spent on refusals. It may
        fail with `DeadlinePassed`, `DeadlineUnmeetable`, `Overloaded` or `ModelFailed`.

        Raises:
            Overloaded: the queue is full, or the site has its share of it.
            DeadlineUnmeetable: the answer would come too late, or make others late.
        """
        came_s, tried = self._clock(), self._gate.tries(deadline)
        claim = Claim(deadline=deadline, priority=priority, came_s=came_s, site=site)
        pushed = self._gate.room(claim)
        ticket = Ticket(
            **vars(claim),
            voxels=voxels(),
            answer=asyncio.get_running_loop().create_future(),
            tried=tried,
        )
        self._telemetry.pushed_out(len(pushed))
        for gone, error in pushed:
            gone.answer.set_exception(error)
        self._queue.put(ticket)
        self._former.arrived()
        return ticket.answer

    async def _run(self) -> None:
        began_s, n, failures = -math.inf, 0, 0
        while True:
            await self._stage.enter()
            freed_s, busy = self._clock(), self._former.ready
            self._gate.free_s = -math.inf
            tickets = await self._former.batch()
            if n and failures == self._failures:
                # with work at hand, what lies between two batches is a part of the first
                until_s = freed_s if self._former.waited or not busy else self._clock()
                self._pace.entrance.observe(n, until_s - began_s)
            began_s, n, failures = self._clock(), len(tickets), self._failures
            self._gate.free_s = began_s + self._pace.entrance.estimate_s(n)
            # here, for a fault in it must end the loop: the place in the stage would not be left
            voxels = np.stack([ticket.voxels for ticket in tickets])
            task = asyncio.create_task(self._read(voxels, tickets, began_s))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, voxels: UInt8Array, tickets: list[Ticket], began_s: float) -> None:
        self._batches += 1
        self._gate.under_way += 1
        batch = self._batches
        try:
            timed = await self._stage.run(voxels, partial(self._wanted, tickets))
            self._pace.answer.observe(len(tickets), self._clock() - began_s)
            self._telemetry.batch_read(len(tickets), timed.compute_s)
            self._deliver(tickets, timed, began_s, batch)
        except Unwanted as error:
            self._failures += 1  # it tells nothing of what batches cost
            self._telemetry.wasted(error.compute_s)
        except Exception as error:  # whatever it is: nobody may wait for an answer in vain
            self._failures += 1
            failed = error if isinstance(error, ModelFailed) else ModelFailed(repr(error))
            _log.error("batch failed", rois=len(tickets), reason=failed.reason, exc_info=error)
            for ticket in tickets:
                if not ticket.answer.done():
                    ticket.answer.set_exception(ModelFailed(failed.reason))
        finally:
            self._gate.read_at_s = self._clock()
            self._gate.under_way -= 1
            for ticket in tickets:
                ticket.answer.cancel()  # only what has no answer: the service stops

    def _wanted(self, tickets: list[Ticket]) -> bool:
        """Whether anybody waits for one of them; first come, first served reads on all the same."""
        return not self._queue.rules.by_deadline or not all(t.answer.done() for t in tickets)

    def _deliver(self, tickets: list[Ticket], timed: Timed, began_s: float, batch: int) -> None:
        late = sum(ticket.answer.done() or ticket.deadline.passed for ticket in tickets)
        self._telemetry.wasted(timed.compute_s * late / len(tickets))
        for i, ticket in enumerate(tickets):
            if ticket.answer.done():
                continue
            ticket.answer.set_result(
                Answer(
                    reading=timed.readings[i],
                    queue_s=began_s - ticket.came_s,
                    compute_s=timed.compute_s,
                    batch=batch,
                )
            )
