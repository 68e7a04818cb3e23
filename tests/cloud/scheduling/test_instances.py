"""Several instances of the model behind one batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import cloud.watchdog as watchdog
from cloud.scheduling.batcher import Batcher
from cloud.scheduling.cost import CostModel
from cloud.telemetry import Telemetry
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable, ModelFailed
from tests.cloud.scheduling.builders import ROUTINE, HandStage, roi, settle

Scenario = Callable[[Batcher, HandStage, HandStage], Coroutine[Any, Any, None]]


def with_two(scenario: Scenario) -> Callable[[], None]:
    """Turns a coroutine into a test with a batcher of two stages that know one cost."""

    async def run() -> None:
        first, second = HandStage(), HandStage()
        cost = CostModel()
        for n in (1, 4):
            cost.observe(n, first.fixed_s + n)
        batcher = Batcher(
            first, Telemetry(), max_batch=2, max_batch_delay_s=0.0, others=(second,), cost=cost,
            clock=lambda: first.now_s + second.now_s,
        )  # fmt: skip
        async with asyncio.timeout(20), batcher:
            await settle()
            await scenario(batcher, first, second)

    def test() -> None:
        asyncio.run(run())

    test.__doc__ = scenario.__doc__
    return test


def submit(batcher: Batcher, value: int, budget_s: float = 60.0) -> asyncio.Future[Any]:
    """Queue one ROI of this value."""
    deadline = Deadline.after(budget_s, batcher._clock)
    return batcher.submit(roi(value), deadline, ROUTINE)


@with_two
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


@with_two
async def test_admission_counts_on_all_instances(
    batcher: Batcher, first: HandStage, second: HandStage
) -> None:
    """In batches of two, 4 s each, one instance reads four ROIs in 9 s, and two read eight."""
    batcher._last_batch_s = 0.0  # otherwise the first would be read as a probe
    deadline = Deadline.after(9, batcher._clock)
    assert batcher.check(deadline, ROUTINE, rois=20) == 8
    for value in range(8):
        submit(batcher, value, 9.0)
    with pytest.raises(DeadlineUnmeetable):
        submit(batcher, 9, 9.0)
    assert batcher.queue.queue_s == pytest.approx(8.0)  # four batches of 4 s on two
    first.allow(4)
    second.allow(4)


@with_two
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


@with_two
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
    for _ in range(3):
        with pytest.raises(ModelFailed):
            await submit(batcher, 255)
    with pytest.raises(ModelFailed, match="3 batches in a row"):
        await failed


def test_an_instance_that_hangs_is_dropped_and_its_rois_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The callers of its batch learn it at once, and the other instance reads on."""
    monkeypatch.setattr(watchdog, "LEAST_HUNG_S", 0.05)
    monkeypatch.setattr(watchdog, "HUNG", 0.0)

    @with_two
    async def scenario(batcher: Batcher, first: HandStage, second: HandStage) -> None:
        hanging = submit(batcher, 1)
        with pytest.raises(ModelFailed, match="the model hangs"):
            await hanging
        assert len(batcher.queue.busy_until_s) == 1
        first.allow(99)
        second.allow(99)
        assert (await submit(batcher, 2)).reading.diameter_mm == 2

    scenario()


def test_a_fault_in_the_loop_of_one_instance_ends_the_service() -> None:
    """It is a fault of the program, which the other loop has too."""

    @with_two
    async def scenario(batcher: Batcher, *_: HandStage) -> None:
        batcher.queue.take = lambda: 1 / 0  # type: ignore[assignment, return-value]
        submit(batcher, 1)
        with pytest.raises(ZeroDivisionError):
            await batcher.wait_for_failure()

    scenario()
