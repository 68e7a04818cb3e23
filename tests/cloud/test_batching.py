"""Batches are formed of what waits; what cannot be met is refused with an estimate."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest

from cloud.batching import Batcher
from cloud.cost import CostModel
from cloud.stages import Readings
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed, Overloaded
from protos.messages import Priority

T = TypeVar("T")
ROUTINE = Priority.ROUTINE


@dataclass
class HandStage:
    """A stage that works by hand: each batch waits until the test lets it go.

    It says of an ROI its first voxel, takes 1 s for each on a clock of its own, and fails on 255.
    """

    now_s: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    allowed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def clock(self) -> float:
        """Seconds that batches took so far."""
        return self.now_s

    async def run(self, batch: UInt8Array) -> Readings:
        """See `cloud.stages.Stage.run`."""
        values = batch[:, 0, 0, 0]
        self.batches.append(values.tolist())
        await self.allowed.acquire()
        self.now_s += len(batch)
        if 255 in values:
            raise ModelFailed("255")
        return Readings(values / 255, values.astype(np.float64), float(len(batch)))


def roi(value: int) -> UInt8Array:
    """One voxel of that value."""
    return np.full((1, 1, 1), value, np.uint8)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns; fails if it hangs."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def batcher(stage: HandStage, *, max_batch: int = 2, max_waiting: int = 9) -> Batcher:
    """A batcher that knows from the start that an ROI takes a second."""
    cost = CostModel()
    cost.observe(1, 1.0)
    cost.observe(2, 2.0)
    return Batcher(
        stage,
        Telemetry(),
        max_batch=max_batch,
        max_wait_s=0.0,
        max_waiting=max_waiting,
        cost=cost,
        clock=stage.clock,
    )


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_deadlines_decide_who_is_read_together() -> None:
    """While one batch runs, the next is formed of the earliest deadlines, not the first comers."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            answers = [line.submit(roi(1), Deadline.after(50, stage.clock), ROUTINE)]
            await settle()
            for value, budget_s in ((2, 40), (3, 20), (4, 30)):
                deadline = Deadline.after(budget_s, stage.clock)
                answers.append(line.submit(roi(value), deadline, ROUTINE))
            for _ in range(3):
                stage.allowed.release()
                await settle()
            assert stage.batches == [[1], [3, 4], [2]]
            got = [await answer for answer in answers]
        assert [round(a.probability * 255) for a in got] == [1, 2, 3, 4]
        assert [a.batch for a in got] == [1, 3, 2, 2]
        assert [a.queue_s for a in got] == [0.0, 3.0, 1.0, 1.0]
        assert [a.compute_s for a in got] == [1.0, 1.0, 2.0, 2.0]

    run(line())


def test_what_cannot_be_met_is_refused_with_an_estimate() -> None:
    """Three ahead in batches of two, a second each: an answer takes 2 s of waiting and 2 s more."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            for value in (1, 2, 3):
                line.submit(roi(value), Deadline.after(10, stage.clock), ROUTINE)
            late = Deadline.after(11, stage.clock)
            assert line.estimate_s(late, ROUTINE) == pytest.approx(4.0)
            assert line.estimate_s(late, Priority.STAT) == pytest.approx(1.0)
            assert line.queue_s == pytest.approx(2.0)
            with pytest.raises(DeadlineUnmeetable) as caught:
                line.submit(roi(4), Deadline.after(0.5, stage.clock), ROUTINE)
            assert caught.value.estimate_s == pytest.approx(1.0)

    run(line())


def test_a_running_batch_counts_in_the_estimate() -> None:
    """What is under way is waited for, less the time it has run already."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(10, stage.clock), ROUTINE)
            await settle()
            assert line.queue_s == pytest.approx(1.0)
            stage.now_s += 0.75
            assert line.queue_s == pytest.approx(0.25)
            stage.allowed.release()

    run(line())


def test_a_full_queue_is_overloaded() -> None:
    """No more may wait than the settings say; those given up do not count."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage, max_waiting=2) as line:
            deadline = Deadline.after(60, stage.clock)
            first, _ = (line.submit(roi(v), deadline, ROUTINE) for v in (1, 2))
            with pytest.raises(Overloaded, match="2 ROIs wait"):
                line.submit(roi(3), deadline, ROUTINE)
            first.cancel()
            line.submit(roi(3), deadline, ROUTINE)

    run(line())


def test_what_expired_or_was_given_up_is_never_read() -> None:
    """A deadline that passes in the queue is told; neither it nor a cancelled ROI is read."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(60, stage.clock), ROUTINE)
            await settle()
            short = line.submit(roi(2), Deadline.after(5, stage.clock), ROUTINE)
            given_up = line.submit(roi(3), Deadline.after(60, stage.clock), ROUTINE)
            kept = line.submit(roi(4), Deadline.after(60, stage.clock), ROUTINE)
            given_up.cancel()
            stage.now_s += 6.0
            stage.allowed.release()
            stage.allowed.release()
            with pytest.raises(DeadlinePassed, match=r"after 7\.000 s"):
                await short
            assert (await kept).diameter_mm == 4.0
            assert stage.batches == [[1], [4]]

    run(line())


def test_a_failed_batch_fails_its_own_alone() -> None:
    """Both of a failed batch are told; the next batch is read."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            answers = [
                line.submit(roi(value), Deadline.after(60 + i, stage.clock), ROUTINE)
                for i, value in enumerate((255, 1, 2))
            ]
            for _ in range(2):
                stage.allowed.release()
            for answer in answers[:2]:
                with pytest.raises(ModelFailed, match="255"):
                    await answer
            assert (await answers[2]).diameter_mm == 2.0

    run(line())


def test_warming_up_teaches_the_cost() -> None:
    """After the warm-up an estimate is there before the first study came."""

    async def line() -> None:
        stage = HandStage()
        for _ in range(3):
            stage.allowed.release()
        line = Batcher(
            stage, Telemetry(), max_batch=4, max_wait_s=0.0, max_waiting=9, clock=stage.clock
        )
        await line.warm_up((1, 1, 1))
        assert [len(batch) for batch in stage.batches] == [1, 1, 4]
        assert line.estimate_s(Deadline(99.0, stage.clock), ROUTINE) == pytest.approx(1.0)

    run(line())


def test_closing_gives_up_what_waits() -> None:
    """No one is left waiting for a batcher that has stopped."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            under_way = line.submit(roi(1), Deadline.after(60, stage.clock), ROUTINE)
            await settle()
            waiting = line.submit(roi(2), Deadline.after(60, stage.clock), ROUTINE)
        assert under_way.cancelled()
        assert waiting.cancelled()

    run(line())
