"""Batches are formed of what waits, the earliest deadline first, and what came too late is told.

What cannot be answered in time is refused at once, with an estimate; what was given up or has
run out of time while it waited is never read.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from types import TracebackType
from typing import Self

import numpy as np

from cloud.cost import CostModel
from cloud.queue import Answer, Queue, Ticket, standing
from cloud.stages import Readings, Stage
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from protos.deadline import Clock, Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed, Overloaded
from protos.messages import Priority


class Batcher:
    """Feeds one stage from one queue; runs while it is entered as an async context.

    Args:
        stage: what reads the batches.
        telemetry: where batches and waits are counted.
        max_batch: ROIs read at once, at most.
        max_wait_s: how long an ROI waits for company, at most; less when its deadline presses.
        max_waiting: ROIs that may wait in all.
        cost: what batches are expected to take; learns from each.
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
        cost: CostModel | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stage, self._telemetry, self._clock = stage, telemetry, clock
        self._max_batch, self._max_wait_s, self._max_waiting = max_batch, max_wait_s, max_waiting
        self._cost = cost or CostModel()
        self._queue = Queue()
        self._arrived = asyncio.Event()
        self._busy_until_s = -math.inf
        self._batches = 0
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        for ticket in self._queue.take(len(self._queue)):
            ticket.answer.cancel()

    async def warm_up(self, roi_shape: tuple[int, int, int]) -> None:
        """Reads empty batches, so that the first study meets a warm engine and a known cost.

        Raises:
            ModelFailed: the model cannot read even that.
        """
        for n, counts in ((1, False), (1, True), (self._max_batch, True)):
            readings = await self._stage.run(np.zeros((n, *roi_shape), np.uint8))
            if counts:
                self._cost.observe(n, readings.compute_s)

    @property
    def waiting(self) -> int:
        """ROIs that wait to be read."""
        return len(self._queue)

    @property
    def queue_s(self) -> float:
        """How long a routine ROI that came now, with time to spare, would wait, in seconds."""
        return self._wait_s(len(self._queue))

    def estimate_s(self, deadline: Deadline, priority: Priority) -> float:
        """Seconds until an ROI that came now would be answered."""
        ahead = self._queue.ahead_of(standing(priority, deadline))
        return self._wait_s(ahead) + self._cost.estimate_s(ahead % self._max_batch + 1)

    def check(self, deadline: Deadline, priority: Priority) -> None:
        """Refuses what could not be answered in time if it came now.

        Raises:
            Overloaded: the queue is full.
            DeadlineUnmeetable: the answer would come too late.
        """
        if (waiting := len(self._queue)) >= self._max_waiting:
            raise Overloaded(f"{waiting} ROIs wait, and no more than {self._max_waiting} may")
        left_s, estimate_s = deadline.remaining_s, self.estimate_s(deadline, priority)
        if estimate_s > left_s:
            raise DeadlineUnmeetable(
                f"an answer would take {estimate_s:.3f} s, {left_s:.3f} s are left", estimate_s
            )

    def submit(
        self, voxels: UInt8Array, deadline: Deadline, priority: Priority
    ) -> asyncio.Future[Answer]:
        """The answer to come for ``voxels`` uint8 ``(z, y, x)``; cancel it to give it up.

        It may fail with `DeadlinePassed` or `ModelFailed`.

        Raises:
            Overloaded: the queue is full.
            DeadlineUnmeetable: the answer would come too late.
        """
        self.check(deadline, priority)
        answer = asyncio.get_running_loop().create_future()
        self._queue.put(Ticket(voxels, deadline, priority, self._clock(), answer))
        self._arrived.set()
        return answer

    def _wait_s(self, ahead: int) -> float:
        running_s = max(0.0, self._busy_until_s - self._clock())
        return running_s + (ahead // self._max_batch) * self._cost.estimate_s(self._max_batch)

    async def _run(self) -> None:
        while True:
            await self._company()
            self._drop_expired()
            if tickets := self._queue.take(self._max_batch):
                await self._read(tickets)

    async def _company(self) -> None:
        """Returns when a batch is full, or its first ticket should wait no longer."""
        while (left_s := self._patience_s()) > 0.0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                    await self._arrived.wait()

    def _patience_s(self) -> float:
        first = self._queue.first()
        if first is None:
            return math.inf
        if (waiting := len(self._queue)) >= self._max_batch:
            return 0.0
        slack_s = first.deadline.remaining_s - self._cost.estimate_s(waiting)
        return min(first.came_s + self._max_wait_s - self._clock(), slack_s)

    def _drop_expired(self) -> None:
        for ticket in self._queue.take_expired():
            waited_s = self._clock() - ticket.came_s
            ticket.answer.set_exception(DeadlinePassed(f"time ran out after {waited_s:.3f} s"))

    async def _read(self, tickets: list[Ticket]) -> None:
        began_s = self._clock()
        self._busy_until_s = began_s + self._cost.estimate_s(len(tickets))
        self._batches += 1
        try:
            readings = await self._stage.run(np.stack([ticket.voxels for ticket in tickets]))
        except ModelFailed as error:
            for ticket in tickets:
                if not ticket.answer.done():
                    ticket.answer.set_exception(ModelFailed(error.reason))
        else:
            self._cost.observe(len(tickets), readings.compute_s)
            self._telemetry.batch_read(len(tickets), readings.compute_s)
            self._deliver(tickets, readings, began_s)
        finally:
            self._busy_until_s = -math.inf
            for ticket in tickets:
                ticket.answer.cancel()  # only what has no answer: the service stops

    def _deliver(self, tickets: list[Ticket], readings: Readings, began_s: float) -> None:
        for i, ticket in enumerate(tickets):
            if ticket.answer.done():
                continue
            ticket.answer.set_result(
                Answer(
                    probability=float(readings.probability[i]),
                    diameter_mm=float(readings.diameter_mm[i]),
                    queue_s=began_s - ticket.came_s,
                    compute_s=readings.compute_s,
                    batch=self._batches,
                )
            )
