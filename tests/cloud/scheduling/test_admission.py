from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cloud.scheduling.admission import STALE_S, count_admissible, preempt_for_deadline
from cloud.scheduling.queue import Queue, QueueRules
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import ChecksumMismatch, DeadlineUnmeetable, Overloaded
from protos.messages import Priority
from tests.cloud.entries import entry, queued, timing
from tests.cloud.hand_stage import ROUTINE, HandStage, batcher, roi, run, settle

STAT = Priority.STAT


def test_what_cannot_be_met_is_refused_with_an_estimate() -> None:
    """Three ahead in batches of two, 4 s each: 4 s of waiting; one due first is read in 3 s."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage) as line:
            for value in (1, 2, 3):
                line.submit(roi(value), Deadline.after(10, stage.clock), ROUTINE)
            assert line.admission.queue_s == pytest.approx(4.0)
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
            assert line.admission.queue_s == pytest.approx(3.0)
            stage.now_s += 0.75
            assert line.admission.queue_s == pytest.approx(2.25)
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
            assert line.admission.queue_s == pytest.approx(20.0)
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
            assert line.admission.check(Deadline.after(9, stage.clock), ROUTINE, rois=5) == 4
            assert line.admission.check(Deadline.after(99, stage.clock), ROUTINE, rois=5) == 5
            with pytest.raises(DeadlineUnmeetable):
                line.admission.check(Deadline.after(2, stage.clock), ROUTINE, rois=5)

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
            assert len(line.queue) == 1
            stage.allowed.release()
            await answer

    run(line())


def test_a_full_queue_is_overloaded() -> None:
    """No more may wait than the settings say; those given up do not count."""

    async def line() -> None:
        stage = HandStage()
        async with batcher(stage, max_queued=2) as line:
            deadline = Deadline.after(60, stage.clock)
            first, _ = (line.submit(roi(v), deadline, ROUTINE) for v in (1, 2))
            with pytest.raises(Overloaded, match="2 ROIs wait, the limit is 2"):
                line.submit(roi(3), deadline, ROUTINE)
            first.cancel()
            line.submit(roi(3), deadline, ROUTINE)

    run(line())


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the tickets' futures; it never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def queue_of(loop: asyncio.AbstractEventLoop, *due_s: float, site: str = "a") -> Queue:
    """Routine work of one site, due at these times."""
    queue = Queue(QueueRules(routine_max_wait_s=100.0))
    for at_s in due_s:
        queue.put(queued(loop, at_s, site=site))
    return queue


def test_what_would_be_late_is_refused_with_its_own_estimate(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Behind four of 6 s an answer comes after 9 s; before them, after 3 s."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match=r"9\.000 s, 7\.000 s are left") as caught:
        preempt_for_deadline(entry(57.0, site="a"), queue, 50.0, timing())
    assert caught.value.estimate_s == pytest.approx(9.0)
    assert preempt_for_deadline(entry(59.5, site="a"), queue, 50.0, timing()) == []


def test_nobody_let_in_is_made_late_by_one_who_comes_after(loop: asyncio.AbstractEventLoop) -> None:
    """An ROI due earlier would be in time, but the others would not: it is refused."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match="would make queued ROIs miss") as caught:
        preempt_for_deadline(entry(55.5, site="a"), queue, 50.0, timing())
    assert caught.value.estimate_s is not None
    assert caught.value.estimate_s > 5.5


def test_stat_may_push_routine_and_routine_not_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Who has to go for an urgent ROI is named; for a routine one nobody urgent is."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    pushed = preempt_for_deadline(entry(80.0, STAT, site="a"), queue, 50.0, timing())
    assert [takes_s for _, takes_s in pushed] == pytest.approx([9.0])
    urgent = queue_of(loop)
    for _ in range(4):
        urgent.put(queued(loop, 56.0, STAT, site="a"))
    with pytest.raises(DeadlineUnmeetable):
        preempt_for_deadline(entry(55.5, site="a"), urgent, 50.0, timing())


def test_a_small_site_may_push_what_a_large_one_has_too_much(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Else who floods the queue up to its deadlines would keep all others out."""
    queue = queue_of(loop, *[68.0] * 12)
    pushed = preempt_for_deadline(entry(55.5, site="b"), queue, 50.0, timing())
    assert [one.site for one, _ in pushed] == ["a", "a"]


def test_sites_that_hold_about_as_much_push_nobody(loop: asyncio.AbstractEventLoop) -> None:
    """What was let in has been sent: another site's few do not make it in vain."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match="would make queued ROIs miss"):
        preempt_for_deadline(entry(55.5, site="b"), queue, 50.0, timing())


def test_a_study_is_told_how_much_of_it_can_be_met(loop: asyncio.AbstractEventLoop) -> None:
    """Behind four of 6 s come four more by 62 s: of six due then four, of six due at 60 s two."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    for due_s, expected in ((62.0, 4), (60.0, 2), (57.0, 0), (90.0, 6)):
        six = [entry(due_s, site="a") for _ in range(6)]
        assert count_admissible(six, queue, 50.0, timing()) == expected


def test_a_study_is_told_places_that_it_may_take(loop: asyncio.AbstractEventLoop) -> None:
    """Urgent ROIs may push routine ones, so all six are let in; routine ones would push nobody."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    six = [entry(90.0, STAT, site="a") for _ in range(6)]
    assert count_admissible(six, queue, 50.0, timing()) == 6
    assert count_admissible([entry(55.0, site="a") for _ in range(6)], queue, 50.0, timing()) == 0


def test_no_more_is_told_to_stay_away_than_has_to(loop: asyncio.AbstractEventLoop) -> None:
    """Seven ROIs due first leave those behind them in time, an eighth would not."""
    queue = queue_of(loop, 63.0)
    first = [entry(62.5, site="a") for _ in range(8)]
    assert count_admissible(first, queue, 50.0, timing()) == 7


def test_routine_is_let_in_beside_stat_without_end(loop: asyncio.AbstractEventLoop) -> None:
    """Behind 40 s of stat a routine ROI of 20 s has its place when it is aged, and keeps it."""
    queue = Queue(QueueRules(routine_max_wait_s=5.0))
    for i in range(26):
        queue.put(queued(loop, 99.0 + i, STAT, site="a"))
    routine = queued(loop, 70.0, site="b")
    assert preempt_for_deadline(routine, queue, 50.0, timing()) == []
    queue.put(routine)
    assert preempt_for_deadline(entry(150.0, STAT, site="a"), queue, 50.0, timing()) == []


def test_routine_without_its_places_may_push_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Where stat fills the time up to its deadlines one goes for the first routine ROI."""
    queue = Queue()
    for _ in range(12):
        queue.put(queued(loop, 68.0, STAT, site="a"))
    pushed = preempt_for_deadline(entry(63.0, site="b"), queue, 50.0, timing())
    assert [one.priority for one, _ in pushed] == [STAT]


def test_routine_with_its_places_pushes_no_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Where a fourth of what waits is routine already one more is refused."""
    queue = Queue()
    for _ in range(9):
        queue.put(queued(loop, 68.0, STAT, site="a"))
    for _ in range(3):
        queue.put(queued(loop, 68.0, site="b"))
    with pytest.raises(DeadlineUnmeetable):
        preempt_for_deadline(entry(63.0, site="b"), queue, 50.0, timing())
