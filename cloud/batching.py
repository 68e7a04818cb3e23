"""Batches are formed of what waits, the earliest deadline first, and what came too late is told.

What cannot be answered in time is refused at once, with an estimate; what was given up or has
run out of time while it waited is never read.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import structlog

from cloud.cost import CostModel
from cloud.forming import Former
from cloud.gate import Gate
from cloud.queue import UNKNOWN_SITE, Answer, Claim, Queue, Rules, Ticket
from cloud.schedule import Pace
from cloud.stages import Stage, Timed, Unwanted
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from protos.deadline import Clock, Deadline
from protos.errors import (
    ModelFailed,
)
from protos.messages import Priority

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
