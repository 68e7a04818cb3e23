from __future__ import annotations

from collections.abc import Callable

import pytest

from cloud.scheduling.admission import STALE_S, count_admissible, preempt_for_deadline
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.queue import Queue
from imaging.volume import UInt8Array
from protos.errors import ChecksumMismatch, DeadlineUnmeetable, Overloaded
from tests.cloud.scheduling.builders import (
    ROUTINE,
    STAT,
    HandStage,
    entry,
    queue_of,
    queued,
    roi,
    settle,
    timing,
    with_batcher,
)


@with_batcher()
async def test_an_roi_that_would_be_late_is_rejected_with_an_estimate(
    batcher: Batcher, stage: HandStage
) -> None:
    """Three ahead in batches of two, 4 s each: 4 s of waiting; one due first is read in 3 s."""
    for value in (1, 2, 3):
        batcher.submit(roi(value), stage.after(10), ROUTINE)
    assert batcher.admission.queue_s == pytest.approx(4.0)
    with pytest.raises(DeadlineUnmeetable) as caught:
        batcher.submit(roi(4), stage.after(0.5), ROUTINE)
    assert caught.value.estimate_s == pytest.approx(3.0)


@with_batcher()
async def test_a_running_batch_counts_in_the_estimate(batcher: Batcher, stage: HandStage) -> None:
    batcher.submit(roi(1), stage.after(10), ROUTINE)
    await settle()
    assert batcher.admission.queue_s == pytest.approx(3.0)
    stage.now_s += 0.75
    assert batcher.admission.queue_s == pytest.approx(2.25)
    stage.allow()


@with_batcher()
async def test_a_batch_that_overruns_is_expected_to_take_as_long_again(
    batcher: Batcher, stage: HandStage
) -> None:
    """Otherwise an ROI that arrives while the model hangs would be promised an answer at once."""
    batcher.submit(roi(1), stage.after(90), ROUTINE)
    await settle()
    stage.now_s += 3.0 + 20.0
    assert batcher.admission.queue_s == pytest.approx(20.0)
    with pytest.raises(DeadlineUnmeetable):
        batcher.submit(roi(2), stage.after(20), ROUTINE)
    stage.allow()


@with_batcher()
async def test_one_stall_does_not_block_admission_for_long(
    batcher: Batcher, stage: HandStage
) -> None:
    """After a batch that stalled for a minute, one due in 5 s is read, and the next too."""
    batcher.submit(roi(1), stage.after(90), ROUTINE)
    await settle()
    stage.now_s += 57.0
    stage.allow()
    await settle()
    with pytest.raises(DeadlineUnmeetable):
        batcher.submit(roi(2), stage.after(5), ROUTINE)
    for _ in range(30):
        stage.now_s += STALE_S + 1.0
        result = batcher.submit(roi(3), stage.after(5), ROUTINE)
        stage.allow()
        await result
    batcher.submit(roi(4), stage.after(6), ROUTINE)


@with_batcher()
async def test_check_counts_the_rois_that_can_be_answered_in_time(
    batcher: Batcher, stage: HandStage
) -> None:
    """In batches of two, 4 s each, of five due in 9 s four can, and in 2 s none."""
    result = batcher.submit(roi(1), stage.after(9), ROUTINE)
    stage.allow()
    await result
    assert batcher.admission.check(stage.after(9), ROUTINE, rois=5) == 4
    assert batcher.admission.check(stage.after(99), ROUTINE, rois=5) == 5
    with pytest.raises(DeadlineUnmeetable):
        batcher.admission.check(stage.after(2), ROUTINE, rois=5)


@with_batcher()
async def test_a_rejected_roi_costs_nothing(batcher: Batcher, stage: HandStage) -> None:
    """The voxels of a rejected ROI are not requested; invalid voxels are not queued."""

    def wrong() -> UInt8Array:
        raise ChecksumMismatch("changed on the way")

    result = batcher.submit(roi(1), stage.after(9), ROUTINE)
    with pytest.raises(DeadlineUnmeetable):
        batcher.submit(wrong, stage.after(0.5), ROUTINE)
    with pytest.raises(ChecksumMismatch):
        batcher.submit(wrong, stage.after(90), ROUTINE)
    assert len(batcher.queue) == 1
    stage.allow()
    await result


@with_batcher(max_queued=2)
async def test_a_full_queue_is_overloaded(batcher: Batcher, stage: HandStage) -> None:
    """Cancelled ROIs do not count."""
    first, _ = (batcher.submit(roi(v), stage.after(60), ROUTINE) for v in (1, 2))
    with pytest.raises(Overloaded, match="2 ROIs wait, the limit is 2"):
        batcher.submit(roi(3), stage.after(60), ROUTINE)
    first.cancel()
    batcher.submit(roi(3), stage.after(60), ROUTINE)


def routine(*due_s: float) -> Queue:
    """Routine work of one site, due at these times."""
    return queue_of(*(queued(at_s, site="a") for at_s in due_s), routine_max_wait_s=100.0)


@pytest.fixture
def four() -> Queue:
    """Four routine ROIs of one site, due when a batch of them is answered."""
    return routine(56.0, 56.0, 56.0, 56.0)


def test_a_late_newcomer_is_rejected_with_its_own_estimate(four: Queue) -> None:
    """Behind four of 6 s an answer comes after 9 s; before them, after 3 s."""
    with pytest.raises(DeadlineUnmeetable, match=r"9\.000 s, 7\.000 s are left") as caught:
        preempt_for_deadline(entry(57.0, site="a"), four, 50.0, timing())
    assert caught.value.estimate_s == pytest.approx(9.0)
    assert preempt_for_deadline(entry(59.5, site="a"), four, 50.0, timing()) == []


@pytest.mark.parametrize("site", ["a", "b"])
def test_no_admitted_roi_is_made_late_by_a_later_one(four: Queue, site: str) -> None:
    """An ROI due earlier would be in time, but the others would not; no site holds too much."""
    with pytest.raises(DeadlineUnmeetable, match="would make queued ROIs miss") as caught:
        preempt_for_deadline(entry(55.5, site=site), four, 50.0, timing())
    assert caught.value.estimate_s is not None
    assert caught.value.estimate_s > 5.5


def test_stat_may_preempt_routine_and_routine_not_stat(four: Queue) -> None:
    preempted = preempt_for_deadline(entry(80.0, STAT, site="a"), four, 50.0, timing())
    assert [takes_s for _, takes_s in preempted] == pytest.approx([9.0])
    urgent = queue_of(*(queued(56.0, STAT, site="a") for _ in range(4)))
    with pytest.raises(DeadlineUnmeetable):
        preempt_for_deadline(entry(55.5, site="a"), urgent, 50.0, timing())


def test_a_small_site_may_preempt_a_large_one() -> None:
    """Otherwise a site could fill the queue up to its deadlines and keep all others out."""
    flooded = routine(*[68.0] * 12)
    preempted = preempt_for_deadline(entry(55.5, site="b"), flooded, 50.0, timing())
    assert [one.site for one, _ in preempted] == ["a", "a"]


@pytest.mark.parametrize(
    ("newcomer", "expected"),
    [
        (lambda: entry(62.0, site="a"), 4),
        (lambda: entry(60.0, site="a"), 2),
        (lambda: entry(57.0, site="a"), 0),
        (lambda: entry(90.0, site="a"), 6),
        (lambda: entry(90.0, STAT, site="a"), 6),
        (lambda: entry(55.0, site="a"), 0),
    ],
)
def test_admissible_rois_are_counted(
    four: Queue, newcomer: Callable[[], object], expected: int
) -> None:
    """Behind four of 6 s four more fit by 62 s; stat may preempt routine, not the reverse."""
    assert count_admissible([newcomer() for _ in range(6)], four, 50.0, timing()) == expected


def test_no_more_rois_are_rejected_than_necessary() -> None:
    """Seven ROIs due first leave the one behind them in time, an eighth would not."""
    first = [entry(62.5, site="a") for _ in range(8)]
    assert count_admissible(first, routine(63.0), 50.0, timing()) == 7


def test_routine_is_admitted_under_endless_stat() -> None:
    """Behind 40 s of stat a routine ROI of 20 s has its place when it is aged, and keeps it."""
    stats = [queued(99.0 + i, STAT, site="a") for i in range(26)]
    queue = queue_of(*stats, routine_max_wait_s=5.0)
    newcomer = queued(70.0, site="b")
    assert preempt_for_deadline(newcomer, queue, 50.0, timing()) == []
    queue.put(newcomer)
    assert preempt_for_deadline(entry(150.0, STAT, site="a"), queue, 50.0, timing()) == []


def test_routine_may_preempt_stat_up_to_its_own_places() -> None:
    """One stat ROI is preempted for the first routine one; none if a fourth is routine already."""
    stats = queue_of(*(queued(68.0, STAT, site="a") for _ in range(12)))
    preempted = preempt_for_deadline(entry(63.0, site="b"), stats, 50.0, timing())
    assert [one.priority for one, _ in preempted] == [STAT]
    mixed = [queued(68.0, STAT, site="a") for _ in range(9)]
    mixed += [queued(68.0, site="b") for _ in range(3)]
    with pytest.raises(DeadlineUnmeetable):
        preempt_for_deadline(entry(63.0, site="b"), queue_of(*mixed), 50.0, timing())
