"""Who is read batch_size, and when: a batch is formed of what waits."""

from __future__ import annotations

import asyncio

import pytest

from cloud.scheduling.batcher import Batcher
from cloud.scheduling.cost import CostModel
from cloud.telemetry import Telemetry
from protos.deadline import Deadline
from tests.cloud.hand_stage import ROUTINE, HandStage, TwoParts, batcher, roi, run, settle


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
        async with batcher(stage, max_batch=4, max_queued=250) as line:
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
            stage, Telemetry(), max_batch=2, max_batch_delay_s=60.0, max_queued=9, cost=cost,
            clock=stage.clock,
        )  # fmt: skip
        waits.announced_rois = coming
        async with waits:
            answers = [waits.submit(roi(1), Deadline.after(900.0, stage.clock), ROUTINE)]
            await asyncio.sleep(0.05)
            answers.append(waits.submit(roi(2), Deadline.after(900.0, stage.clock), ROUTINE))
            await asyncio.gather(*answers)
        return stage.batches

    assert run(scenario()) == batches
