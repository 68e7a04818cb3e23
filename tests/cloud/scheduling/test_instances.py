"""Several instances of the model behind one batcher."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest

import cloud.scheduling.batcher as module
from cloud.scheduling.batcher import Batcher
from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable, ModelFailed, OverreadError
from tests.cloud.scheduling.builders import (
    ROUTINE,
    Day,
    HandStage,
    TwoSteps,
    random_day,
    roi,
    settle,
    submit,
    with_batcher,
)


@with_batcher(stages=2)
async def test_a_batch_goes_to_the_instance_that_is_free(
    batcher: Batcher, first: HandStage, second: HandStage
) -> None:
    """The queue is one: the earliest deadline is read next, whichever instance is free."""
    results = [submit(batcher, 1)]
    await settle()
    results.append(submit(batcher, 2))
    await settle()
    assert sorted(first.batches + second.batches) == [[1], [2]]
    busy, free = (first, second) if first.batches == [[1]] else (second, first)
    results += [submit(batcher, value, budget_s) for value, budget_s in ((3, 50), (4, 30), (5, 40))]
    await settle()
    assert len(first.batches + second.batches) == 2
    free.allow()
    await settle()
    assert free.batches[1:] == [[4, 5]]
    free.allow(2)
    await settle()
    assert free.batches[2:] == [[3]]
    busy.allow()
    values = [(await result).reading.diameter_mm for result in results]
    assert values == [1, 2, 3, 4, 5]


@with_batcher(stages=2)
async def test_admission_counts_on_all_instances(
    batcher: Batcher, first: HandStage, second: HandStage
) -> None:
    """In batches of two, 4 s each, one instance reads four ROIs in 9 s, and two read eight."""
    batcher._last_batch_s = 0.0  # otherwise the first would be read as a probe
    deadline = Deadline.after(9, batcher.clock)
    kept = batcher.reserve(deadline, ROUTINE, rois=20)
    assert len(kept) == 8
    batcher.queue.release(kept)
    for value in range(8):
        submit(batcher, value, 9.0)
    with pytest.raises(DeadlineUnmeetable):
        submit(batcher, 9, 9.0)
    assert batcher.queue.queue_s == pytest.approx(8.0)  # four batches of 4 s on two
    first.allow(4)
    second.allow(4)


@with_batcher(stages=2)
async def test_light_load_does_not_hide_the_time_of_a_batch(
    batcher: Batcher, first: HandStage, second: HandStage
) -> None:
    """With one instance always free, the next batch starts at once, and yet each takes 3 s."""
    for value in range(40):
        first.allow()
        second.allow()
        await submit(batcher, value)
    await settle()
    assert batcher.timing.interval.estimate_s(1) == pytest.approx(3.0)


@with_batcher(stages=2)
async def test_an_instance_that_fails_is_dropped_and_the_other_reads_on(
    batcher: Batcher, first: HandStage, second: HandStage
) -> None:
    """After three failed batches in a row it gets no more."""
    first.allow(99)
    failed = asyncio.create_task(batcher.wait_for_failure())
    second.allow(99)
    while len(batcher.queue.busy_until_s) == 2:
        with pytest.raises(ModelFailed):
            await submit(batcher, 255)
    assert not failed.done()
    before = len(first.batches), len(second.batches)
    for value in range(5):
        assert (await submit(batcher, value)).reading.diameter_mm == value
    after = len(first.batches), len(second.batches)
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 5]
    for value in (255, 255, 1, 255, 255, 255):  # one that is read begins a new row
        assert not failed.done()
        await asyncio.wait([submit(batcher, value)])
    with pytest.raises(ModelFailed, match="3 batches in a row"):
        await failed


@pytest.mark.parametrize(
    ("values", "budget_s", "broken", "error"),
    [
        ((1, 2), 60.0, True, ""),  # all of what its instance cannot read
        ((1, 255), 60.0, False, "255"),  # what fails again is refused
        ((1, 2), 5.0, True, "in the queue"),  # the deadline stays
    ],
)
def test_a_batch_that_failed_goes_back_into_the_queue_once(
    values: tuple[int, int], budget_s: float, broken: bool, error: str
) -> None:
    """Another instance reads it, even where the one that failed is free first."""

    @with_batcher(stages=2)
    async def scenario(batcher: Batcher, *stages: HandStage) -> None:
        batcher._last_batch_s = 0.0  # otherwise the first would be read as a probe
        busy = submit(batcher, 9)
        await settle()
        other, first = sorted(stages, key=lambda stage: not stage.batches)
        run, given = first.run, list[list[int]]()

        async def fail(batch: UInt8Array, is_wanted: Any = None) -> Any:
            if not broken or given:
                return await run(batch, is_wanted)
            given.append(batch[:, 0, 0, 0].tolist())
            first.now_s += 4.0
            await settle()
            first.place.release()
            raise ModelFailed("its worker died")

        first.run = fail  # type: ignore[method-assign]
        first.allow(9)
        results = [submit(batcher, value, budget_s) for value in values]
        await settle()
        other.allow(9)
        await asyncio.wait(results, timeout=20)
        assert (await busy).reading.diameter_mm == 9
        for value, result in zip(values, results, strict=True):
            if error:
                with pytest.raises(OverreadError, match=error):
                    result.result()
            else:
                assert result.result().reading.diameter_mm == value
        read = [value for batch in given + first.batches + other.batches for value in batch]
        late = error and broken
        assert sorted(read) == sorted([9, *values] if late else [9, *values, *values])
        assert len(batcher.queue.busy_until_s) == 2

    scenario()


def test_an_instance_that_hangs_is_dropped_and_the_other_reads_its_rois(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two steps holds two batches; both are read by the other instance."""
    monkeypatch.setattr(module, "MIN_HUNG_S", 0.05)
    monkeypatch.setattr(module, "HUNG", 0.0)

    @with_batcher(TwoSteps, stages=2, max_batch=1)
    async def scenario(batcher: Batcher, hanging: TwoSteps, other: TwoSteps) -> None:
        other.allow(99)
        results = []
        while len(hanging.batches) < 2:
            results.append(submit(batcher, 1))
            await settle()
        held = [result for result in results if not result.done()]
        assert len(held) == 2
        for result in held:
            assert (await asyncio.wait_for(result, 5.0)).reading.diameter_mm == 1
        assert not batcher._reading
        assert len(batcher.queue.busy_until_s) == 1
        assert (await submit(batcher, 2)).reading.diameter_mm == 2

    scenario()


def test_a_fault_in_the_loop_of_one_instance_ends_the_service() -> None:
    """It is a fault of the program, which the other loop has too."""

    @with_batcher(stages=2)
    async def scenario(batcher: Batcher, *_: HandStage) -> None:
        batcher.queue.take = lambda: 1 / 0  # type: ignore[assignment, return-value]
        submit(batcher, 1)
        with pytest.raises(ZeroDivisionError):
            await batcher.wait_for_failure()

    scenario()


def test_three_instances_admit_three_times_as_much_and_keep_it() -> None:
    """At several times the capacity: nothing is read late, and nothing is dropped but for stat."""
    read = {}
    for instances in (1, 3):
        days = [random_day(instances, seed, 0.0) for seed in range(10)]
        read[instances] = sum(day.read for day in days)
        assert not any(day.late for day in days)
        assert read[instances] == sum(len(day.admitted) for day in days)
    assert read[3] >= 2.7 * read[1]


@pytest.mark.parametrize("instances", [1, 3])
def test_what_is_refused_could_not_have_been_read_in_time(instances: int) -> None:
    """The same day with the refused ROI in the queue: at least one ROI is late."""
    rng = np.random.default_rng(instances)

    def run(arrivals: list[tuple[float, float]], *, asks: bool) -> tuple[Day, list[bool]]:
        """The day, and who was admitted; all but those ask for no place if ``asks`` is false."""
        day, told = Day(instances), list[bool]()
        for i, (pause_s, budget_s) in enumerate(arrivals, 1):
            day.run_until(day.now_s + pause_s)
            told.append(day.arrive(ROUTINE, budget_s, "a", asks=asks or i < len(arrivals)))
        return day, told

    refused = 0
    for _ in range(5):
        arrivals = [(rng.exponential(0.5 / instances), rng.uniform(4, 30)) for _ in range(80)]
        _, told = run(arrivals, asks=True)
        for end in [i for i, admitted in enumerate(told, 1) if not admitted]:
            day, _ = run(arrivals[:end], asks=False)
            day.run_until(math.inf)
            errors = [one.result.exception() for one in day.admitted if one.result.done()]
            assert day.late or any(errors), f"{end} of {arrivals}"
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("stat_share", [0.1, 0.5])
def test_stat_is_read_and_few_routine_rois_give_way(stat_share: float) -> None:
    """At several times the capacity; both priorities are read, and what gives way says so."""
    days = [random_day(3, seed, stat_share) for seed in range(10)]
    admitted = [one for day in days for one in day.admitted]
    assert not any(day.late for day in days)
    errors = [one.result.exception() for one in admitted if one.result and one.result.done()]
    dropped = [error for error in errors if error is not None]
    assert 0 < len(dropped) <= 0.03 * len(admitted)
    assert all(isinstance(error, DeadlineUnmeetable) for error in dropped)
    stats = [one for one in admitted if one.is_stat]
    lost = sum(one.result is not None and one.result.done() for one in stats)
    assert lost <= 0.003 * len(stats)
    assert 0.1 < len(stats) / len(admitted) < 0.9


@with_batcher()
async def test_a_place_is_kept_until_its_roi_comes_or_it_lapses(
    batcher: Batcher, stage: HandStage, *_: HandStage
) -> None:
    """In batches of two, 4 s each, four fit into 9 s; a place lapses after a quarter of that."""
    batcher._last_batch_s = 0.0
    deadline = Deadline.after(9, batcher.clock)
    kept = batcher.reserve(deadline, ROUTINE, rois=20)
    assert len(kept) == 4
    assert len(batcher.queue) == 0
    with pytest.raises(DeadlineUnmeetable):
        batcher.submit(roi(1), deadline, ROUTINE)
    with pytest.raises(ZeroDivisionError):  # wrong voxels do not use it up: they may come again
        batcher.submit(lambda: 1 // 0, deadline, ROUTINE, kept=kept)  # type: ignore[arg-type, return-value]
    first = batcher.submit(roi(1), deadline, ROUTINE, kept=kept)
    batcher.queue.release([kept.pop()])
    other = batcher.submit(roi(2), deadline, ROUTINE)
    with pytest.raises(DeadlineUnmeetable):
        batcher.submit(roi(3), deadline, ROUTINE)
    stage.now_s += 2.3
    last = batcher.submit(roi(4), Deadline.after(20, batcher.clock), ROUTINE)
    assert not any(place.has_place for place in kept)
    stage.allow(3)
    assert [(await one).reading.diameter_mm for one in (first, other, last)] == [1, 2, 4]
