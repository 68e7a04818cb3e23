"""What cannot be met is refused with an estimate, and who waits is told what became of it."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from cloud.scheduling.batcher import Batcher
from cloud.telemetry import Telemetry
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, ModelFailed
from protos.messages import Priority
from tests.cloud.hand_stage import ROUTINE, HandStage, batcher, roi, run, settle


def wasted_s(line: Batcher) -> float:
    """Model time that nobody had anything of."""
    value = line._telemetry.registry.get_sample_value("overread_cloud_wasted_seconds_total")
    assert value is not None
    return value


def test_whatever_goes_wrong_is_told_to_who_waits() -> None:
    """A fault that is no `ModelFailed` is one to the caller; the next batch is read."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line._telemetry.batch_completed = None  # type: ignore[assignment] # calling it is the fault
            answer = line.submit(roi(1), Deadline.after(9, stage.clock), ROUTINE)
            stage.allowed.release()
            with pytest.raises(ModelFailed, match="TypeError"):
                await answer
            del line._telemetry.batch_completed
            answer = line.submit(roi(2), Deadline.after(9, stage.clock), ROUTINE)
            stage.allowed.release()
            assert (await answer).reading.probability == pytest.approx(2 / 255)

    run(line())


def test_a_batch_that_nobody_wants_any_more_ends_and_the_next_is_read() -> None:
    """It teaches nothing of what batches cost."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            given_up = line.submit(roi(1), Deadline.after(90, stage.clock), ROUTINE)
            await settle()
            given_up.cancel()
            stage.allowed.release()
            await settle()
            assert stage.now_s == 0.0
            answer = line.submit(roi(2), Deadline.after(90, stage.clock), ROUTINE)
            stage.allowed.release()
            assert (await answer).compute_s == 3.0
            assert line.timing.latency.line == pytest.approx((2.0, 1.0))

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


def test_a_failed_batch_is_logged_once_with_its_cause() -> None:
    """The operator reads what the model threw; its callers are told in a word."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            answers = [
                line.submit(roi(255), Deadline.after(60, stage.clock), ROUTINE) for _ in range(2)
            ]
            stage.allowed.release()
            await asyncio.gather(*answers, return_exceptions=True)

    with structlog.testing.capture_logs() as logs:
        run(line())
    (told,) = logs
    assert (told["event"], told["rois"], told["reason"]) == ("batch failed", 2, "255")
    assert isinstance(told["exc_info"], ModelFailed)


def test_warming_up_teaches_the_cost() -> None:
    """After the warm-up an estimate is there before the first study came."""

    async def line() -> None:
        stage = HandStage()
        for _ in range(3):
            stage.allowed.release()
        line = Batcher(
            stage, Telemetry(), max_batch=4, max_batch_delay_s=0.0, max_queued=9, clock=stage.clock
        )
        await line.warm_up((1, 1, 1))
        assert [len(batch) for batch in stage.batches] == [1, 1, 4]
        assert line.timing.latency.line == pytest.approx((2.0, 1.0))

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
