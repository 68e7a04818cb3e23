"""The batcher: takes ROIs for the scheduler, and feeds batches of them to the stages.

An ROI that is cancelled or runs out of time while it waits is never read.

A watchdog notices a batch that hangs, and batches that fail in a row. An instance of the model that
cannot read must not stay: it gets no more batches, and the others go on. Without any that reads,
the service must end: its supervisor can start it again, and callers can use another.
"""

import asyncio
import contextlib
import copy
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

import numpy as np
import structlog

from cloud.instances import BatchAbandoned, BatchResult, WorkerStage
from cloud.scheduling.arrivals import Rules
from cloud.scheduling.cost import BatchTiming, CostModel
from cloud.scheduling.scheduler import Scheduler
from cloud.scheduling.waiting import UNKNOWN_SITE, RoiResult, WaitingRoi
from cloud.telemetry import CloudTelemetry
from imaging.volume import UInt8Array
from protos.deadline import Clock, Deadline
from protos.errors import ModelFailed
from protos.messages import Priority

MAX_BATCH_DELAY_S = 0.005
"""Longest wait of an ROI for others to join its batch."""

STALE_S = 5.0
"""Seconds without a batch after which the learnt cost may be out of date."""

HUNG, MIN_HUNG_S = 10.0, 5.0
"""The model hangs if a batch takes this many times its bound, and at least this many seconds."""

FAILURES_IN_A_ROW = 3
"""After this many failed batches in a row an instance counts as broken."""

_log = structlog.get_logger(__name__)


class Batcher:
    """Feeds stages from one queue; runs while it is entered as an async context.

    The stages are instances of one model, about equally fast: a batch goes to one that is free.
    ``cost`` is the expected time of a batch, and learns from each.
    ``announced_rois`` are those that open streams have announced and not sent yet: while there are
    none, a batch does not wait for more, otherwise for ``max_batch_delay_s`` at most.
    """

    def __init__(
        self,
        stages: Sequence[WorkerStage],
        telemetry: CloudTelemetry,
        *,
        max_batch: int,
        max_batch_delay_s: float = MAX_BATCH_DELAY_S,
        rules: Rules | None = None,
        cost: CostModel | None = None,
        scheduler: type[Scheduler] = Scheduler,
        clock: Clock = time.monotonic,
    ) -> None:
        self.announced_rois = 0
        self._stages, self.telemetry, self.clock = stages, telemetry, clock
        self._max_delay_s, self._reading = max_batch_delay_s, set[asyncio.Task[None]]()
        cost = cost or CostModel()
        self.timing = BatchTiming(cost, copy.deepcopy(cost), max_batch)
        self.queue = scheduler(rules or Rules(), self.timing, clock)
        self._batches = self._failures = self._running = 0
        self._arrived, self._last_batch_s = asyncio.Event(), -math.inf
        self._returned = -1, list[asyncio.Future[RoiResult]]()  # which instance failed at what

    async def __aenter__(self) -> Self:
        self._loops = [asyncio.create_task(self._run(i)) for i in range(len(self._stages))]
        self._watchdog = Watchdog(self._loops, self.queue.busy_until_s.pop)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._reading, *self._loops]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for roi in self.queue.waiting:
            roi.cancel()

    async def wait_for_failure(self) -> None:
        """Wait as long as batches are formed and read, and raise the error that ends it.

        `ModelFailed`: see `Watchdog`. Others: a fault of the program.
        """
        await asyncio.shield(self._watchdog.broken)

    async def warm_up(self, roi_shape: tuple[int, int, int]) -> None:
        """Read batches of one cube, so that engine and cost model are ready for the first study.

        What is surely no nodule would take less time. All instances read at once, as they do under
        load: they may share processors. `ModelFailed` is raised where one cannot read them.
        """
        roi = np.full(roi_shape, 30, np.uint8)  # of lung
        roi[tuple(slice(5 * side // 12, 7 * side // 12) for side in roi_shape)] = 190

        async def read(stage: WorkerStage, n: int) -> float:
            await stage.enter()
            began_s = self.clock()
            await stage.run(np.stack([roi] * n))
            return self.clock() - began_s

        most = self.timing.max_batch
        await asyncio.gather(*(read(stage, 1) for stage in self._stages))  # the first takes longer
        for n in (*(2**i for i in range((most - 1).bit_length())), most):
            for took_s in await asyncio.gather(*(read(stage, n) for stage in self._stages)):
                self.timing.latency.observe(n, took_s)
                self.timing.interval.observe(n, took_s)

    def reserve(
        self, deadline: Deadline, priority: Priority, site: str = UNKNOWN_SITE, rois: int = 1
    ) -> deque[WaitingRoi]:
        """Keep places for as many of ``rois`` as can be answered in time, at least for one.

        A place lapses after a part of the budget (`KEPT`); `Scheduler.release` gives it back.

        Raises:
            Overloaded: the queue is full, or the site has used up its share.
            DeadlineUnmeetable: an answer would be late, or make others late.
        """
        # where nothing was read for long, the first is read as a probe: otherwise the high estimate
        # after a stall would reject every ROI that could correct it
        now_s, idle = self.clock(), not self._running and not len(self.queue)
        probe = idle and now_s - self._last_batch_s > STALE_S and not deadline.passed
        newcomers = [
            WaitingRoi(
                deadline=deadline,
                priority=priority,
                arrived_s=now_s,
                site=site,
                is_probe=probe and i == 0,
            )
            for i in range(rois)
        ]
        kept = newcomers[: self.queue.admit(newcomers)]
        self.queue.put(kept)
        return deque(kept)

    def submit(
        self,
        voxels: Callable[[], UInt8Array],
        deadline: Deadline,
        priority: Priority,
        site: str = UNKNOWN_SITE,
        kept: deque[WaitingRoi] | None = None,
    ) -> asyncio.Future[RoiResult]:
        """Queue an ROI and return its future result; cancel that to withdraw the ROI.

        It gets the first place of ``kept``, if one is left. ``voxels`` returns uint8 ``(z, y, x)``.
        It is called after admission, so that a rejected ROI costs nothing. The future may fail with
        `DeadlinePassed`, `DeadlineUnmeetable`, `Overloaded` or `ModelFailed`; errors are raised as
        in `reserve`.
        """
        kept = deque() if kept is None else kept
        while kept and not kept[0].has_place:
            kept.popleft()  # it has lapsed
        own = kept or self.reserve(deadline, priority, site)
        try:
            own[0].voxels = voxels()
        except BaseException:
            if not kept:
                self.queue.release(own)
            raise
        roi = own.popleft()
        roi.arrived_s, roi.result = self.clock(), asyncio.get_running_loop().create_future()
        self._arrived.set()
        return roi.result

    async def _run(self, i: int) -> None:
        """Feed instance ``i``."""
        began_s, n, failures = -math.inf, 0, 0
        while True:
            await self._stages[i].enter()
            failed, returned = self._returned
            if failed == i:  # another instance has the first turn at what went back
                await asyncio.wait(returned, timeout=self.timing.latency.bound_s(len(returned)))
                self._returned = -1, returned
            freed_s, busy = self.clock(), self._delay_left_s() <= 0.0
            self.queue.busy_until_s[i] = -math.inf
            rois, waited = await self._next_batch()
            # The interval of the batch before ends when the stage was free again. If more work
            # was ready by then, the time until this batch begins belongs to it as well.
            if n and failures == self._failures:
                until_s = freed_s if waited or not busy else self.clock()
                self.timing.interval.observe(n, until_s - began_s)
            began_s, n, failures = self.clock(), len(rois), self._failures
            self.queue.busy_until_s[i] = began_s + self.timing.interval.estimate_s(n)
            # stacked in the loop, not in the task: a fault must end the loop, since the stage has
            # been entered and would never be released
            voxels = np.stack([roi.voxels for roi in rois])
            task = asyncio.create_task(self._read(i, voxels, rois, began_s))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _next_batch(self) -> tuple[list[WaitingRoi], bool]:
        """Return the next batch as soon as it should start, and whether that was later."""
        waited = False
        while True:
            # every arrival may change the delay: a batch is full, or a deadline is near
            while (left_s := self._delay_left_s()) > 0.0:
                waited = True
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                        await self._arrived.wait()
            if batch := self.queue.take():
                return batch, waited

    def _delay_left_s(self) -> float:
        """Return how long the next batch should still wait for more ROIs.

        Infinity if nothing waits; 0 or less if a batch is full, a deadline is near, or no open
        stream has more to send.
        """
        if not (waiting := self.queue.waiting):
            return math.inf
        # a batch that is efficient gains nothing by waiting, nor does one that nobody can join
        full = self.timing.interval.efficient_size(self.timing.max_batch)
        if len(waiting) >= full or self.announced_rois == 0:
            return 0.0
        delay_s = min(roi.arrived_s for roi in waiting) + self._max_delay_s - self.clock()
        soonest_s = min(roi.deadline.remaining_s for roi in waiting)
        return min(delay_s, soonest_s - self.timing.latency.bound_s(len(waiting)))

    async def _read(self, i: int, batch: UInt8Array, rois: list[WaitingRoi], at_s: float) -> None:
        self._batches += 1
        self._running += 1
        number = self._batches
        try:
            with self._watchdog.batch(i, len(rois), self.timing.latency.bound_s(len(rois))):
                result = await self._stages[i].run(batch, lambda: any(roi.waits for roi in rois))
            self.timing.latency.observe(len(rois), self.clock() - at_s)
            self.telemetry.compute_s.observe(result.compute_s)
            self._deliver(rois, result, at_s, number)
            self._watchdog.succeeded(i)
        except BatchAbandoned as error:
            self._failures += 1  # its time says nothing about the cost of a batch
            self.telemetry.wasted_s.inc(error.compute_s)
        except Exception as error:  # whatever it is, every caller must get an outcome
            self._failures += 1
            failed = error if isinstance(error, ModelFailed) else ModelFailed(repr(error))
            if not all(roi.failed for roi in rois):  # else it may be the ROIs, not the instance
                self._watchdog.failed(i, failed.reason)
            again = self._put_back(i, rois)
            said = {"rois": len(rois), "again": len(again), "reason": failed.reason}
            _log.error("batch failed", **said, exc_info=error)
            rois = [roi for roi in rois if roi not in again]
            for roi in rois:
                roi.fail(ModelFailed(failed.reason))
        finally:
            self._last_batch_s = self.clock()
            self._running -= 1
            for roi in rois:
                roi.cancel()  # has an effect only if the service stops

    def _put_back(self, i: int, rois: list[WaitingRoi]) -> list[WaitingRoi]:
        """Return what another instance than ``i`` shall read: it is in the queue, for once."""
        again = [roi for roi in rois if roi.waits and not roi.failed]
        if not again or not self.queue.busy_until_s.keys() - {i}:
            return []
        for roi in again:
            roi.failed = True
            self.queue.put([roi])
        if all(result.done() for result in self._returned[1]):  # one instance at a time holds back
            self._returned = i, [roi.result for roi in again if roi.result]
        self._arrived.set()
        return again

    def _deliver(self, rois: list[WaitingRoi], read: BatchResult, at_s: float, batch: int) -> None:
        # each ROI has an equal part of the batch's time; that of unwanted and late ones is wasted
        late = sum(not roi.waits or roi.deadline.passed for roi in rois)
        self.telemetry.wasted_s.inc(read.compute_s * late / len(rois))
        for i, roi in enumerate(rois):
            if roi.waits and roi.result:
                said = (at_s - roi.arrived_s, read.compute_s, batch, at_s, len(rois))
                roi.result.set_result(RoiResult(read.readings[i], *said))


class Watchdog:
    """Watches the instances of the model, each with the loop that feeds it.

    A broken instance is dropped: its loop is cancelled, and ``dropped`` is called with its number.
    ``broken`` fails with `ModelFailed` once the last one cannot read any more, or with what a loop
    raised besides.
    """

    def __init__(
        self, loops: Sequence[asyncio.Task[None]], dropped: Callable[[int], object]
    ) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loops, self._dropped = dict(enumerate(loops)), dropped
        self._failures = Counter[int]()
        for i, loop in self._loops.items():
            loop.add_done_callback(partial(self._ended, i))

    @contextlib.contextmanager
    def batch(self, i: int, rois: int, bound_s: float) -> Iterator[None]:
        """Watch a batch of instance ``i`` while the current task reads it.

        It should seldom take longer than ``bound_s``. If it hangs, the instance is dropped, and
        `ModelFailed` is raised.
        """
        most_s, task = max(MIN_HUNG_S, HUNG * bound_s), asyncio.current_task()
        hangs = f"the model hangs: a batch of {rois} ROIs takes more than {most_s:.1f} s"

        def hung() -> None:
            self._break(i, hangs)
            # the last instance's batch is not failed: its callers learn that the service ends
            if i not in self._loops and task is not None:
                task.cancel(hangs)

        timer = asyncio.get_running_loop().call_later(most_s, hung)
        try:
            yield
        except asyncio.CancelledError as error:
            if task is not None and error.args == (hangs,):
                task.uncancel()
                raise ModelFailed(hangs) from None
            raise
        finally:
            timer.cancel()

    def succeeded(self, i: int) -> None:
        """Note that instance ``i`` has read a batch."""
        self._failures[i] = 0

    def failed(self, i: int, reason: str) -> None:
        """Note that instance ``i`` could not read a batch."""
        self._failures[i] += 1
        if self._failures[i] >= FAILURES_IN_A_ROW:
            self._break(i, f"{self._failures[i]} batches in a row failed: {reason}")

    def _break(self, i: int, reason: str) -> None:
        """Drop instance ``i`` if it is not dropped yet; the last one breaks the service instead."""
        if len(self._loops) > 1 and i in self._loops:
            left = len(self._loops) - 1
            _log.error("an instance of the model is dropped", instance=i, reason=reason, left=left)
            self._loops.pop(i).cancel()
            self._dropped(i)
        elif i in self._loops and not self.broken.done():
            self.broken.set_exception(ModelFailed(reason))

    def _ended(self, i: int, loop: asyncio.Task[None]) -> None:
        """Drop the instance of a loop that failed; a fault of the program ends the service."""
        error = None if loop.cancelled() else loop.exception()
        if isinstance(error, ModelFailed):
            self._break(i, error.reason)
        elif error is not None and not self.broken.done():
            self.broken.set_exception(error)
