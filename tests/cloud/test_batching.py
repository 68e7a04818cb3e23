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
from cloud.queue import Rules
from cloud.stages import Timed
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed, Overloaded
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
        """See `cloud.stages.Stage.enter`."""
        await self.place.acquire()

    async def run(self, batch: UInt8Array) -> Timed:
        """See `cloud.stages.Stage.run`."""
        values = batch[:, 0, 0, 0]
        self.batches.append(values.tolist())
        took_s = self.fixed_s + len(batch)
        try:
            await self.allowed.acquire()
            self.now_s += took_s
            if 255 in values:
                raise ModelFailed("255")
            return Timed(plain(values / 255, values), took_s)
        finally:
            self.place.release()


def roi(value: int) -> UInt8Array:
    """One voxel of that value."""
    return np.full((1, 1, 1), value, np.uint8)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns; fails if it hangs."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def batcher(stage: HandStage, *, max_batch: int = 2, max_waiting: int = 9, **rules: Any) -> Batcher:
    """A batcher that knows from the start what the stage takes."""
    cost = CostModel()
    for n in (1, 4):
        cost.observe(n, stage.fixed_s + n)
    return Batcher(
        stage,
        Telemetry(),
        max_batch=max_batch,
        max_wait_s=0.0,
        max_waiting=max_waiting,
        rules=Rules(**rules),
        cost=cost,
        clock=stage.clock,
    )


def wasted_s(line: Batcher) -> float:
    """Model time that nobody had anything of."""
    value = line._telemetry.registry.get_sample_value("overread_cloud_wasted_seconds_total")
    assert value is not None
    return value


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
        assert [round(a.reading.probability * 255) for a in got] == [1, 2, 3, 4]
        assert [a.batch for a in got] == [1, 3, 2, 2]
        assert [a.queue_s for a in got] == [0.0, 7.0, 3.0, 3.0]
        assert [a.compute_s for a in got] == [3.0, 3.0, 4.0, 4.0]

    run(line())


def test_what_cannot_be_met_is_refused_with_an_estimate() -> None:
    """Three ahead in batches of two, 4 s each: an answer takes 4 s of waiting and 4 s more."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            for value in (1, 2, 3):
                line.submit(roi(value), Deadline.after(10, stage.clock), ROUTINE)
            late = Deadline.after(11, stage.clock)
            assert line.estimate_s(late, ROUTINE) == pytest.approx(8.0)
            assert line.estimate_s(late, Priority.STAT) == pytest.approx(4.0)
            assert line.queue_s == pytest.approx(4.0)
            with pytest.raises(DeadlineUnmeetable) as caught:
                line.submit(roi(4), Deadline.after(0.5, stage.clock), ROUTINE)
            assert caught.value.estimate_s == pytest.approx(3.0)

    run(line())


def test_a_running_batch_counts_in_the_estimate() -> None:
    """What is under way is waited for, less the time it has run already."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(10, stage.clock), ROUTINE)
            await settle()
            assert line.queue_s == pytest.approx(3.0)
            stage.now_s += 0.75
            assert line.queue_s == pytest.approx(2.25)
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
            short = line.submit(roi(2), Deadline.after(8, stage.clock), ROUTINE)
            given_up = line.submit(roi(3), Deadline.after(60, stage.clock), ROUTINE)
            kept = line.submit(roi(4), Deadline.after(60, stage.clock), ROUTINE)
            given_up.cancel()
            stage.now_s += 6.0
            stage.allowed.release()
            stage.allowed.release()
            with pytest.raises(DeadlinePassed, match=r"after 9\.000 s"):
                await short
            assert (await kept).reading.diameter_mm == 4.0
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
            assert (await answers[2]).reading.diameter_mm == 2.0

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
        assert line.estimate_s(Deadline(99.0, stage.clock), ROUTINE) == pytest.approx(3.0)

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


def test_a_batch_is_cut_where_company_would_make_one_late() -> None:
    """A batch of four takes 6 s: with one due in 4.5 s it is made of two, and all are in time."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage, max_batch=4) as line:
            answers = [
                line.submit(roi(value), Deadline.after(budget_s, stage.clock), ROUTINE)
                for value, budget_s in ((1, 4.5), (2, 20), (3, 20), (4, 20))
            ]
            stage.allowed.release()
            stage.allowed.release()
            await asyncio.gather(*answers)
            assert stage.batches == [[1, 2], [3, 4]]

    run(line())


def test_the_batch_follows_the_cost() -> None:
    """Where batches turn out to save nothing, they shrink to one, and each is answered sooner."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage, max_batch=4, max_waiting=250) as line:
            stage.fixed_s = 0.0
            answers = [
                line.submit(roi(value), Deadline.after(900, stage.clock), ROUTINE)
                for value in range(250)
            ]
            for _ in answers:
                stage.allowed.release()
            await asyncio.gather(*answers)
        sizes = [len(batch) for batch in stage.batches]
        assert sizes[0] == 4
        assert sizes[-5:] == [1] * 5

    run(line())


def test_stat_that_comes_late_pushes_a_routine_roi_out_at_once() -> None:
    """It is told so when that becomes clear, with an estimate, and is not read."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(20, stage.clock), ROUTINE)
            await settle()
            routine = [
                line.submit(roi(v), Deadline.after(7.5, stage.clock), ROUTINE) for v in (2, 3)
            ]
            stat = line.submit(roi(4), Deadline.after(20, stage.clock), Priority.STAT)
            done = [answer for answer in routine if answer.done()]
            assert len(done) == 1
            error = done[0].exception()
            assert isinstance(error, DeadlineUnmeetable)
            assert error.estimate_s == pytest.approx(10.0)
            for _ in range(2):
                stage.allowed.release()
            assert (await stat).reading.diameter_mm == 4.0
            assert len(stage.batches) == 2

    run(line())


def test_first_come_first_served_refuses_nothing_and_reads_what_is_late() -> None:
    """What it is there to be compared with: full batches in order of arrival, deadlines ignored."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage, by_deadline=False) as line:
            answers = [
                line.submit(roi(value), Deadline.after(1.0, stage.clock), priority)
                for value, priority in ((1, ROUTINE), (2, ROUTINE), (3, Priority.STAT))
            ]
            for _ in range(2):
                stage.allowed.release()
            await asyncio.gather(*answers)
            assert stage.batches == [[1, 2], [3]]
            assert wasted_s(line) == pytest.approx(7.0)

    run(line())


def test_what_is_late_in_the_end_counts_as_wasted() -> None:
    """Half of a batch of 4 s was for one that had been given up meanwhile."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            kept, given_up = (
                line.submit(roi(v), Deadline.after(9, stage.clock), ROUTINE) for v in (1, 2)
            )
            await settle()
            given_up.cancel()
            stage.allowed.release()
            await kept
            assert wasted_s(line) == pytest.approx(2.0)

    run(line())


@dataclass
class TwoParts(HandStage):
    """A stage that lets the next batch in after a while, when the last is still under way."""

    async def run(self, batch: UInt8Array) -> Timed:
        """As `HandStage.run`, but the place is free before the answer is there."""
        self.batches.append(batch[:, 0, 0, 0].tolist())
        self.now_s += self.fixed_s + len(batch)
        self.place.release()
        await self.allowed.acquire()
        self.now_s += 1.0
        return Timed(plain(batch[:, 0, 0, 0] / 255, batch[:, 0, 0, 0]), 1.0)


def test_a_pipeline_is_kept_full() -> None:
    """The second batch starts before the first is answered, and each gets its own answers."""

    async def line() -> None:
        stage = TwoParts()
        async with batcher(stage) as line:
            answers = [
                line.submit(roi(value), Deadline.after(60, stage.clock), ROUTINE)
                for value in (1, 2, 3, 4)
            ]
            await settle()
            assert stage.batches == [[1, 2], [3, 4]]
            stage.allowed.release()
            stage.allowed.release()
            got = [await answer for answer in answers]
        assert [a.reading.diameter_mm for a in got] == [1.0, 2.0, 3.0, 4.0]
        assert [a.batch for a in got] == [1, 1, 2, 2]

    run(line())


@pytest.mark.parametrize(("coming", "batches"), [(0, [[1], [2]]), (1, [[1, 2]])])
def test_nobody_is_waited_for_when_nobody_is_to_come(coming: int, batches: list[list[int]]) -> None:
    """An ROI alone starts at once; where another is announced it waits for that."""

    async def scenario() -> list[list[int]]:
        stage = HandStage()
        stage.allowed.release()
        stage.allowed.release()
        cost = CostModel()
        for n in (1, 4):
            cost.observe(n, stage.fixed_s + n)
        waits = Batcher(
            stage, Telemetry(), max_batch=2, max_wait_s=60.0, max_waiting=9, cost=cost,
            coming=lambda: coming, clock=stage.clock,
        )  # fmt: skip
        async with waits:
            answers = [waits.submit(roi(1), Deadline.after(900.0, stage.clock), ROUTINE)]
            await asyncio.sleep(0.05)
            answers.append(waits.submit(roi(2), Deadline.after(900.0, stage.clock), ROUTINE))
            await asyncio.gather(*answers)
        return stage.batches

    assert run(scenario()) == batches
