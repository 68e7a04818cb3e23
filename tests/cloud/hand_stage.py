"""A stage that works by hand, and a batcher that knows what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from cloud.scheduling.batcher import Batcher
from cloud.scheduling.cost import CostModel
from cloud.scheduling.queue import QueueRules
from cloud.telemetry import Telemetry
from cloud.workers import BatchAbandoned, BatchResult, always
from imaging.volume import UInt8Array
from protos.errors import ModelFailed
from protos.messages import Priority
from tests.plain_readings import plain

T = TypeVar("T")
ROUTINE = Priority.ROUTINE


@dataclass
class HandStage:
    """A stage that works by hand: each batch waits until the test lets it go.

    It says of an ROI its first voxel, and fails on 255. A batch takes ``fixed_s`` and 1 s for each
    ROI, on a clock of its own.
    """

    fixed_s: float = 2.0
    now_s: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    allowed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    place: asyncio.Lock = field(default_factory=asyncio.Lock)

    def clock(self) -> float:
        """Seconds that batches took so far."""
        return self.now_s

    async def enter(self) -> None:
        """See `cloud.workers.Stage.enter`."""
        await self.place.acquire()

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> BatchResult:
        """See `cloud.workers.Stage.run`."""
        values = batch[:, 0, 0, 0]
        self.batches.append(values.tolist())
        took_s = self.fixed_s + len(batch)
        try:
            await self.allowed.acquire()
            if not wanted():
                raise BatchAbandoned
            self.now_s += took_s
            if 255 in values:
                raise ModelFailed("255")
            return BatchResult(plain(values / 255, values), took_s)
        finally:
            self.place.release()


def roi(value: int) -> Callable[[], UInt8Array]:
    """One voxel of that value, for who asks for it."""
    return lambda: np.full((1, 1, 1), value, np.uint8)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns; fails if it hangs."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def batcher(stage: HandStage, *, max_batch: int = 2, max_queued: int = 9, **rules: Any) -> Batcher:
    """A batcher that knows from the start what the stage takes."""
    cost = CostModel()
    for n in (1, 4):
        cost.observe(n, stage.fixed_s + n)
    return Batcher(
        stage,
        Telemetry(),
        max_batch=max_batch,
        max_batch_delay_s=0.0,
        max_queued=max_queued,
        rules=QueueRules(**rules),
        cost=cost,
        clock=stage.clock,
    )


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class TwoParts(HandStage):
    """A stage that lets the next batch in after a while, when the last is still under way."""

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> BatchResult:
        """As `HandStage.run`, but the place is free before the answer is there."""
        self.batches.append(batch[:, 0, 0, 0].tolist())
        self.now_s += self.fixed_s + len(batch)
        self.place.release()
        await self.allowed.acquire()
        if not wanted():
            raise BatchAbandoned
        self.now_s += 1.0
        return BatchResult(plain(batch[:, 0, 0, 0] / 255, batch[:, 0, 0, 0]), 1.0)
