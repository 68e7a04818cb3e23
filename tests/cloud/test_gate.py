"""Who is let in, and what is expected of the time that batches take."""

from __future__ import annotations

import pytest

from cloud.gate import STALE_S
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import (
    ChecksumMismatch,
    DeadlineUnmeetable,
    Overloaded,
)
from tests.cloud.hand_stage import ROUTINE, HandStage, batcher, roi, run, settle


def test_what_cannot_be_met_is_refused_with_an_estimate() -> None:
    """Three ahead in batches of two, 4 s each: 4 s of waiting; one due first is read in 3 s."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            for value in (1, 2, 3):
                line.submit(roi(value), Deadline.after(10, stage.clock), ROUTINE)
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


def test_a_batch_that_overruns_is_expected_to_take_as_long_again() -> None:
    """Else whoever comes while the model hangs is promised an answer at once."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(90, stage.clock), ROUTINE)
            await settle()
            stage.now_s += 3.0 + 20.0
            assert line.queue_s == pytest.approx(20.0)
            with pytest.raises(DeadlineUnmeetable):
                line.submit(roi(2), Deadline.after(20, stage.clock), ROUTINE)
            stage.allowed.release()

    run(line())


def test_one_stall_does_not_keep_everybody_out() -> None:
    """After a batch that stood still for a minute, one due in 5 s is read, and the next too."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            line.submit(roi(1), Deadline.after(90, stage.clock), ROUTINE)
            await settle()
            stage.now_s += 57.0
            stage.allowed.release()
            await settle()
            with pytest.raises(DeadlineUnmeetable):
                line.submit(roi(2), Deadline.after(5, stage.clock), ROUTINE)
            for _ in range(30):
                stage.now_s += STALE_S + 1.0
                answer = line.submit(roi(3), Deadline.after(5, stage.clock), ROUTINE)
                stage.allowed.release()
                await answer
            line.submit(roi(4), Deadline.after(6, stage.clock), ROUTINE)

    run(line())


def test_a_study_is_told_how_many_of_its_rois_can_be_met() -> None:
    """In batches of two, 4 s each, of five due in 9 s four can, and in 2 s none."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            answer = line.submit(roi(1), Deadline.after(9, stage.clock), ROUTINE)
            stage.allowed.release()
            await answer
            assert line.check(Deadline.after(9, stage.clock), ROUTINE, rois=5) == 4
            assert line.check(Deadline.after(99, stage.clock), ROUTINE, rois=5) == 5
            with pytest.raises(DeadlineUnmeetable):
                line.check(Deadline.after(2, stage.clock), ROUTINE, rois=5)

    run(line())


def test_what_is_not_let_in_costs_nothing() -> None:
    """The voxels of a refused ROI are never asked for; what is wrong with them queues nobody."""

    async def line() -> None:
        stage = HandStage()

        def wrong() -> UInt8Array:
            raise ChecksumMismatch("changed on the way")

        async with batcher(stage) as line:
            answer = line.submit(roi(1), Deadline.after(9, stage.clock), ROUTINE)
            with pytest.raises(DeadlineUnmeetable):
                line.submit(wrong, Deadline.after(0.5, stage.clock), ROUTINE)
            with pytest.raises(ChecksumMismatch):
                line.submit(wrong, Deadline.after(90, stage.clock), ROUTINE)
            assert line.waiting == 1
            stage.allowed.release()
            await answer

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
