"""The batcher: queues ROIs, forms batches of them by deadline, and feeds these to a stage.

An ROI that cannot be answered in time is rejected at once, with an estimate. One that is cancelled
or runs out of time while it waits is never read.
"""

import asyncio
import contextlib
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
import structlog

from cloud.scheduling.admission import AdmissionControl
from cloud.scheduling.cost import CostModel
from cloud.scheduling.entry import UNKNOWN_SITE, QueuedRoi, QueueEntry, RoiResult
from cloud.scheduling.planner import BatchTiming, batch_size
from cloud.scheduling.queue import Queue, QueueRules
from cloud.telemetry import Telemetry
from cloud.workers import BatchAbandoned, BatchResult, WorkerStage
from imaging.volume import UInt8Array
from protos.deadline import Clock, Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed, OverreadError
from protos.messages import Priority

_log = structlog.get_logger(__name__)


class Batcher:
    """Feeds one stage from one queue; runs while it is entered as an async context.

    First come, first served, if ``rules`` say so, rejects nothing for its deadline and fills every
    batch. ``cost`` is the expected time of a batch, and learns from each. ``announced_rois`` are
    those that open streams have announced and not sent yet: while there are none, a batch does not
    wait for more, otherwise for ``max_batch_delay_s`` at most.
    """

    def __init__(
        self,
        stage: WorkerStage,
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_batch_delay_s: float,
        max_queued: int,
        rules: QueueRules | None = None,
        cost: CostModel | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.announced_rois = 0
        self._stage, self._telemetry, self._clock = stage, telemetry, clock
        cost = cost or CostModel()
        self.timing = BatchTiming(cost, copy.deepcopy(cost), max_batch)
        self.queue = Queue(rules)
        self._former = BatchFormer(
            self.queue, self.timing, max_batch_delay_s, lambda: self.announced_rois, clock
        )
        self.admission = AdmissionControl(self.queue, self.timing, max_queued, clock)
        self._batches = self._failures = 0
        self._loop: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._reading, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for roi in self.queue.waiting():
            roi.result.cancel()

    async def wait_for_failure(self) -> None:
        """Wait as long as batches are formed, and raise the error that ends it."""
        if self._loop is not None:
            await asyncio.shield(self._loop)

    async def warm_up(self, roi_shape: tuple[int, int, int]) -> None:
        """Read empty batches, so that engine and cost model are ready for the first study.

        Raises:
            ModelFailed: the model cannot read them.
        """
        for n, counts in ((1, False), (1, True), (self.timing.max_batch, True)):
            await self._stage.enter()
            began_s = self._clock()
            await self._stage.run(np.zeros((n, *roi_shape), np.uint8))
            if counts:
                self.timing.latency.observe(n, self._clock() - began_s)
                self.timing.interval.observe(n, self._clock() - began_s)

    def submit(
        self,
        voxels: Callable[[], UInt8Array],
        deadline: Deadline,
        priority: Priority,
        site: str = UNKNOWN_SITE,
    ) -> asyncio.Future[RoiResult]:
        """Queue an ROI and return its future result; cancel that to withdraw the ROI.

        ``voxels`` returns uint8 ``(z, y, x)``. It is called after admission, so that a rejected ROI
        costs nothing. The future may fail with `DeadlinePassed`, `DeadlineUnmeetable`,
        `Overloaded` or `ModelFailed`.

        Raises:
            Overloaded: the queue is full, or the site has used up its quota.
            DeadlineUnmeetable: the answer would be late, or make others late.
        """
        arrived_s, is_probe = self._clock(), self.admission.is_probe(deadline)
        entry = QueueEntry(deadline=deadline, priority=priority, arrived_s=arrived_s, site=site)
        preempted = self.admission.admit(entry)
        roi = QueuedRoi(
            **vars(entry),
            voxels=voxels(),
            result=asyncio.get_running_loop().create_future(),
            is_probe=is_probe,
        )
        # only now, since invalid voxels must not preempt any
        self._telemetry.preempted.inc(len(preempted))
        for gone, error in preempted:
            gone.result.set_exception(error)
        self.queue.put(roi)
        self._former.notify()
        return roi.result

    async def _run(self) -> None:
        began_s, n, failures = -math.inf, 0, 0
        while True:
            await self._stage.enter()
            freed_s, busy = self._clock(), self._former.is_ready
            self.admission.stage_free_s = -math.inf
            rois = await self._former.next_batch()
            # The interval of the batch before ends when the stage was free again. If more work
            # was ready by then, the time until this batch begins belongs to it as well.
            if n and failures == self._failures:
                until_s = freed_s if self._former.waited or not busy else self._clock()
                self.timing.interval.observe(n, until_s - began_s)
            began_s, n, failures = self._clock(), len(rois), self._failures
            self.admission.stage_free_s = began_s + self.timing.interval.estimate_s(n)
            # stacked in the loop, not in the task: a fault must end the loop, since the stage has
            # been entered and would never be released
            voxels = np.stack([roi.voxels for roi in rois])
            task = asyncio.create_task(self._read(voxels, rois, began_s))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, voxels: UInt8Array, rois: list[QueuedRoi], began_s: float) -> None:
        self._batches += 1
        self.admission.running_batches += 1
        batch = self._batches
        try:
            result = await self._stage.run(voxels, partial(self._is_wanted, rois))
            self.timing.latency.observe(len(rois), self._clock() - began_s)
            self._telemetry.batch_rois.observe(len(rois))
            self._telemetry.compute_s.observe(result.compute_s)
            self._deliver(rois, result, began_s, batch)
        except BatchAbandoned as error:
            self._failures += 1  # its time says nothing about the cost of a batch
            self._telemetry.wasted_s.inc(error.compute_s)
        except Exception as error:  # whatever it is, every caller must get an outcome
            self._failures += 1
            failed = error if isinstance(error, ModelFailed) else ModelFailed(repr(error))
            _log.error("batch failed", rois=len(rois), reason=failed.reason, exc_info=error)
            for roi in rois:
                if not roi.result.done():
                    roi.result.set_exception(ModelFailed(failed.reason))
        finally:
            self.admission.last_batch_s = self._clock()
            self.admission.running_batches -= 1
            for roi in rois:
                roi.result.cancel()  # has an effect only if the service stops

    def _is_wanted(self, rois: list[QueuedRoi]) -> bool:
        """Return whether any caller still waits; always true for first come, first served."""
        return not self.queue.rules.by_deadline or not all(roi.result.done() for roi in rois)

    def _deliver(
        self, rois: list[QueuedRoi], result: BatchResult, began_s: float, batch: int
    ) -> None:
        late = sum(roi.result.done() or roi.deadline.passed for roi in rois)
        self._telemetry.wasted_s.inc(result.compute_s * late / len(rois))
        for i, roi in enumerate(rois):
            if not roi.result.done():
                queue_s = began_s - roi.arrived_s
                roi.result.set_result(
                    RoiResult(result.readings[i], queue_s, result.compute_s, batch, began_s)
                )


class BatchFormer:
    """Decides when the next batch starts, and which waiting ROIs it contains.

    ``announced_rois`` returns how many more ROIs may arrive on open streams. ``waited`` tells
    whether the last batch had to wait for ROIs.
    """

    def __init__(
        self,
        queue: Queue,
        timing: BatchTiming,
        max_delay_s: float,
        announced_rois: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._queue, self._timing, self._max_delay_s = queue, timing, max_delay_s
        self._announced_rois, self._clock = announced_rois, clock
        self._by_deadline = queue.rules.by_deadline
        self._arrived = asyncio.Event()
        self.waited = False

    def notify(self) -> None:
        """Signal that an ROI was put into the queue."""
        self._arrived.set()

    @property
    def is_ready(self) -> bool:
        """Whether a batch would start at once."""
        return self._delay_left_s() <= 0.0

    async def next_batch(self) -> list[QueuedRoi]:
        """Return the next batch as soon as it should start."""
        self.waited = False
        while True:
            # every arrival may change the delay: a batch is full, or a deadline is near
            while (left_s := self._delay_left_s()) > 0.0:
                self.waited = True
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                        await self._arrived.wait()
            self._reject_late()
            now_s = self._clock()
            if order := self._queue.in_order(now_s):
                n = self._timing.max_batch
                if self._by_deadline:
                    n = batch_size(order, now_s, self._timing)
                return self._queue.take(n, now_s)

    def _delay_left_s(self) -> float:
        """Return how long the next batch should still wait for more ROIs.

        Infinity if nothing waits; 0 or less if a batch is full, a deadline is near, or no open
        stream has more to send.
        """
        if not (waiting := self._queue.waiting()):
            return math.inf
        # full, or nothing more is to come: start now
        efficient = self._timing.efficient_size()
        full = efficient if self._by_deadline else self._timing.max_batch
        if len(waiting) >= full or (self._by_deadline and self._announced_rois() == 0):
            return 0.0
        # otherwise until the oldest ROI has waited enough, or the earliest deadline is at risk
        delay_s = min(roi.arrived_s for roi in waiting) + self._max_delay_s - self._clock()
        if not self._by_deadline:
            return delay_s
        soonest_s = min(roi.deadline.remaining_s for roi in waiting)
        return min(delay_s, soonest_s - self._timing.latency.bound_s(len(waiting)))

    def _reject_late(self) -> None:
        """Reject the ROIs that can no longer be answered in time, even if read alone."""
        if not self._by_deadline:
            return
        alone_s = self._timing.latency.bound_s(1)
        for roi in self._queue.waiting():
            waited_s, left_s = self._clock() - roi.arrived_s, roi.deadline.remaining_s
            if roi.deadline.passed:
                error: OverreadError = DeadlinePassed(
                    f"the deadline passed after {waited_s:.3f} s in the queue"
                )
            elif left_s < alone_s and not roi.is_probe:
                error = DeadlineUnmeetable(
                    f"after {waited_s:.3f} s in the queue {left_s:.3f} s are left; "
                    f"reading takes {alone_s:.3f} s",
                    alone_s,
                )
            else:
                continue
            roi.result.set_exception(error)
