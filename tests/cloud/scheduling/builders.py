"""Queue entries, and a batcher on a stage that works by hand."""

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud.instances import BatchAbandoned, BatchResult, stages_of
from cloud.scheduling.arrivals import Rules
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.cost import BatchTiming, CostModel
from cloud.scheduling.scheduler import Scheduler
from cloud.scheduling.waiting import WaitingRoi
from cloud.telemetry import CloudTelemetry
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable, ModelFailed, Overloaded
from protos.messages import Priority
from tests.plain_readings import plain

ROUTINE, STAT = Priority.ROUTINE, Priority.STAT
NOW_S = 50.0


def due(at_s: float, priority: Priority = ROUTINE, **fields: Any) -> WaitingRoi:
    """An ROI that arrived at 50 s and is due at ``at_s``; the clock stands still.

    Its result needs no event loop.
    """
    given = {"deadline": Deadline(at_s, lambda: NOW_S), "priority": priority, "arrived_s": NOW_S}
    made, result = WaitingRoi(**{**given, **fields}), concurrent.futures.Future[Any]()
    made.voxels, made.result = np.zeros((1, 1, 1), np.uint8), result  # type: ignore[assignment]
    return made


def scheduler_of(*rois: WaitingRoi, cost: BatchTiming | None = None, **rules: Any) -> Scheduler:
    """A scheduler at which ``rois`` wait, in order of arrival, at 50 s."""
    scheduler = Scheduler(Rules(**rules), cost or timing(), lambda: NOW_S)
    for one in rois:
        scheduler.put([one])
    return scheduler


def timing(
    fixed_s: float = 2.0, each_s: float = 1.0, interval: float = 1.0, most: int = 4
) -> BatchTiming:
    """A batch takes a fixed time and one for each ROI; the next may start after a part of that."""
    latency, until_next = CostModel(), CostModel()
    for n in (1, 8):
        latency.observe(n, fixed_s + n * each_s)
        until_next.observe(n, interval * (fixed_s + n * each_s))
    return BatchTiming(latency, until_next, most)


@dataclass
class HandStage:
    """A stage that works by hand: each batch waits until the test allows it.

    It reads an ROI as its first voxel, and fails on 255. A batch takes ``fixed_s`` and 1 s for each
    ROI, on a clock of its own.
    """

    fixed_s: float = 2.0
    now_s: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    allowed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    place: asyncio.Lock = field(default_factory=asyncio.Lock)

    def allow(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.allowed.release()

    async def enter(self) -> None:
        await self.place.acquire()

    async def run(self, batch: UInt8Array, is_wanted: Any = None) -> BatchResult:
        values = batch[:, 0, 0, 0]
        self.batches.append(values.tolist())
        took_s = self.fixed_s + len(batch)
        try:
            await self.allowed.acquire()
            if is_wanted and not is_wanted():
                raise BatchAbandoned
            self.now_s += took_s
            if 255 in values:
                raise ModelFailed("255")
            return BatchResult(plain(values / 255, values), took_s)
        finally:
            self.place.release()


@dataclass
class TwoSteps(HandStage):
    """A stage that lets the next batch in while the last is still being read."""

    async def run(self, batch: UInt8Array, is_wanted: Any = None) -> BatchResult:
        self.batches.append(batch[:, 0, 0, 0].tolist())
        self.now_s += self.fixed_s + len(batch)
        self.place.release()
        await self.allowed.acquire()
        if is_wanted and not is_wanted():
            raise BatchAbandoned
        self.now_s += 1.0
        return BatchResult(plain(batch[:, 0, 0, 0] / 255, batch[:, 0, 0, 0]), 1.0)


class Day:
    """ROIs that arrive on a clock of its own, read by instances for which the estimate is exact."""

    def __init__(self, instances: int = 1) -> None:
        self.now_s, self.read, self.late = NOW_S, 0, 0
        self.admitted: list[WaitingRoi] = []
        self.scheduler = Scheduler(Rules(), timing(), lambda: self.now_s)
        self.scheduler.busy_until_s = dict.fromkeys(range(instances), -math.inf)

    def arrive(self, priority: Priority, budget_s: float, site: str, *, asks: bool = True) -> bool:
        """Whether an ROI that arrives now is admitted, or has a place if it ``asks`` for none."""
        deadline = Deadline(self.now_s + budget_s, lambda: self.now_s)
        newcomer = due(0.0, priority, deadline=deadline, site=site, arrived_s=self.now_s)
        with contextlib.suppress(DeadlineUnmeetable, Overloaded):
            if asks:
                self.scheduler.admit([newcomer])
            self.scheduler.put([newcomer])
            self.admitted.append(newcomer)
            return True
        return False

    def run_until(self, end_s: float) -> None:
        ends_s = self.scheduler.busy_until_s
        while True:
            for i in ends_s:
                if math.isinf(ends_s[i]) and (batch := self.scheduler.take()):
                    ends_s[i] = self.now_s + 2.0 + len(batch)
                    self.read += len(batch)
                    self.late += sum(one.deadline.at_s < ends_s[i] - 1e-6 for one in batch)
            at_s, i = min((at_s, i) for i, at_s in [*ends_s.items(), (-1, math.inf)] if at_s > 0)
            if i < 0 or at_s > end_s:
                break
            self.now_s, ends_s[i] = at_s, -math.inf
        self.now_s = end_s if math.isfinite(end_s) else self.now_s


def random_day(instances: int, seed: int, stat_share: float) -> Day:
    """400 ROIs of four sites with budgets of 4 to 30 s; all that were admitted are over."""
    day, rng = Day(instances), np.random.default_rng(seed)
    for _ in range(400):
        day.run_until(day.now_s + rng.exponential(0.3))
        budget_s = rng.uniform(4, 30)
        priority = STAT if rng.random() < stat_share else ROUTINE
        day.arrive(priority, budget_s, str(rng.integers(4)))
    day.run_until(math.inf)
    return day


def roi(value: int) -> Callable[[], UInt8Array]:
    """The voxels of an ROI: one, of that value."""
    return lambda: np.full((1, 1, 1), value, np.uint8)


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def submit(
    batcher: Batcher, value: int, budget_s: float = 60.0, priority: Priority = ROUTINE
) -> asyncio.Future[Any]:
    return batcher.submit(roi(value), Deadline.after(budget_s, batcher.clock), priority)


Scenario = Callable[..., Coroutine[Any, Any, None]]


def with_batcher(
    stage_type: type[HandStage] = HandStage,
    *,
    stages: int = 1,
    max_batch: int = 2,
    max_batch_delay_s: float = 0.0,
) -> Callable[[Scenario], Callable[[], None]]:
    """Turns a coroutine into a test with a batcher that knows the cost of its stages.

    The coroutine is called with the batcher and its stages, which share a clock.
    """

    def decorate(scenario: Scenario) -> Callable[[], None]:
        async def run() -> None:
            made, cost = [stage_type() for _ in range(stages)], CostModel()
            for n in (1, 4):
                cost.observe(n, made[0].fixed_s + n)
            batcher = Batcher(
                made,
                CloudTelemetry(),
                max_batch=max_batch,
                max_batch_delay_s=max_batch_delay_s,
                cost=cost,
                clock=lambda: sum(stage.now_s for stage in made),
            )
            async with asyncio.timeout(60), batcher:
                await settle()
                await scenario(batcher, *made)

        def test() -> None:
            asyncio.run(run())

        test.__doc__ = scenario.__doc__
        return test

    return decorate


@contextlib.asynccontextmanager
async def batcher_of(reader: Any, max_batch: int) -> AsyncIterator[Batcher]:
    """A batcher of the instances of a real reader of ROIs of 2 x 2 x 2, which is warmed up."""
    stages = stages_of(reader, time.monotonic)
    batcher = Batcher(stages, CloudTelemetry(), max_batch=max_batch, max_batch_delay_s=0.0)
    await batcher.warm_up((2, 2, 2))
    async with asyncio.timeout(120), batcher:
        yield batcher
    for one in stages:
        await one.close()
