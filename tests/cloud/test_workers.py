"""A reader in steps: batches overlap, answers do not mix, and failures stay where they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloud.workers import BatchAbandoned, BatchResult, SteppedReader, WorkerStage
from protos.errors import ModelFailed
from tests.plain_readings import plain


class Steps:
    """Three steps that remember their threads; a gate holds the second, and 255 fails there."""

    name = "steps"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.log: list[tuple[str, int]] = []
        self.threads: dict[str, threading.Thread] = {}

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """First, second and third."""
        return self._first, self._second, self._third

    def _first(self, batch: Any) -> Any:
        return self._note("first", batch.reshape(len(batch), -1).mean(1))

    def _second(self, mean: Any) -> Any:
        assert self.gate.wait(20), "a test left the gate closed"
        if 255 in mean:
            raise ValueError("all 255")
        return self._note("second", mean)

    def _third(self, mean: Any) -> Any:
        return plain(self._note("third", mean) / 255, mean)

    def _note(self, step: str, mean: Any) -> Any:
        self.log.append((step, int(mean[0])))
        self.threads[step] = threading.current_thread()
        return mean


def batch(value: int, n: int = 1) -> np.ndarray:
    """ROIs full of one value."""
    return np.full((n, 2, 2, 2), value, np.uint8)


async def read(stage: WorkerStage, value: int) -> BatchResult:
    """Enters and runs one batch."""
    await stage.enter()
    return await stage.run(batch(value))


async def until(holds: Callable[[], bool]) -> None:
    """Waits until what it is given holds."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def test_each_step_has_a_thread_of_its_own() -> None:
    """And none is the loop's; the readings are what the last step left."""

    async def line() -> BatchResult:
        stage = WorkerStage(steps)
        try:
            return await read(stage, 51)
        finally:
            stage.close()

    steps = Steps()
    assert isinstance(steps, SteppedReader)
    timed = asyncio.run(line())
    assert timed.readings.probability.tolist() == [0.2]
    assert timed.compute_s >= 0.0
    assert len({*steps.threads.values(), threading.main_thread()}) == 4


def test_a_batch_enters_when_the_first_step_is_free_and_not_before() -> None:
    """With the second step held, one batch is in it, one after the first step, a third outside."""

    async def line() -> None:
        steps = Steps()
        stage = WorkerStage(steps)
        steps.gate.clear()
        tasks = [asyncio.create_task(read(stage, value)) for value in (1, 2, 3)]
        await until(lambda: ("first", 2) in steps.log)
        await asyncio.sleep(0.02)
        assert steps.log == [("first", 1), ("first", 2)]
        steps.gate.set()
        timed = await asyncio.gather(*tasks)
        stage.close()
        assert [one.readings.diameter_mm.tolist() for one in timed] == [[1.0], [2.0], [3.0]]

    asyncio.run(line())


def test_a_step_that_fails_fails_its_batch_alone() -> None:
    """The batches before and behind it are read, and the way is free again."""

    async def line() -> None:
        stage = WorkerStage(Steps())
        one, failed, other = await asyncio.gather(
            *(read(stage, value) for value in (1, 255, 2)), return_exceptions=True
        )
        assert isinstance(failed, ModelFailed)
        assert "steps: ValueError: all 255" in failed.reason
        for timed, value in ((one, 1.0), (other, 2.0), (await read(stage, 3), 3.0)):
            assert isinstance(timed, BatchResult)
            assert timed.readings.diameter_mm.tolist() == [value]
        stage.close()

    asyncio.run(line())


def test_a_batch_given_up_frees_its_place() -> None:
    """Whether it is under way or waits between two steps."""

    async def line() -> None:
        steps = Steps()
        stage = WorkerStage(steps)
        steps.gate.clear()
        tasks = [asyncio.create_task(read(stage, value)) for value in (1, 2)]
        await until(lambda: ("first", 2) in steps.log)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        steps.gate.set()
        timed = await read(stage, 3)
        stage.close()
        assert timed.readings.diameter_mm.tolist() == [3.0]

    asyncio.run(line())


@pytest.mark.parametrize("answer", [None, plain([2.0], [1.0])])
def test_an_answer_that_cannot_be_is_a_failed_model(answer: Any) -> None:
    """What the last step leaves is checked as a whole reader's is."""

    class Wrong(Steps):
        def _third(self, _mean: Any) -> Any:
            return answer

    async def line() -> None:
        stage = WorkerStage(Wrong())
        try:
            await read(stage, 1)
        finally:
            stage.close()

    with pytest.raises(ModelFailed, match="steps"):
        asyncio.run(line())


def test_a_batch_that_nobody_wants_any_more_goes_no_further() -> None:
    """It is asked before each step; the step that it would have begun is free for the next."""

    async def line() -> None:
        steps, wanted = Steps(), {1: True, 2: True}
        stage = WorkerStage(steps)

        async def read_unwanted(value: int) -> None:
            await stage.enter()
            with pytest.raises(BatchAbandoned):
                await stage.run(batch(value), lambda: wanted[value])

        steps.gate.clear()
        tasks = [asyncio.create_task(read_unwanted(value)) for value in (1, 2)]
        await until(lambda: ("first", 2) in steps.log)
        wanted[1] = wanted[2] = False
        steps.gate.set()
        await asyncio.gather(*tasks)
        assert (await read(stage, 3)).readings.diameter_mm.tolist() == [3.0]
        stage.close()
        done = [("first", 1), ("first", 2), ("second", 1)]
        assert steps.log == [*done, ("first", 3), ("second", 3), ("third", 3)]

    asyncio.run(line())
