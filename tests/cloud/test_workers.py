"""A model behind a stage: off the event loop, overlapping in steps, and never trusted blindly."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cloud.instances import BatchAbandoned, BatchResult, WorkerStage
from protos.errors import ModelFailed
from tests.plain_readings import plain

Step = Callable[[Any], Any]


class ThreeSteps:
    """Three steps that remember their threads; a gate holds the second, and 255 fails there."""

    name = "steps"

    def __init__(self, answer: Callable[[Any], Any] = lambda mean: plain(mean / 255, mean)) -> None:
        self._answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.log: list[tuple[str, int]] = []
        self.threads: dict[str, threading.Thread] = {}

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._first, self._second, self._third

    def _first(self, batch: Any) -> Any:
        return self._note("first", batch.reshape(len(batch), -1).mean(1))

    def _second(self, mean: Any) -> Any:
        assert self.gate.wait(20), "a test left the gate closed"
        if 255 in mean:
            raise ValueError("all 255")
        return self._note("second", mean)

    def _third(self, mean: Any) -> Any:
        return self._answer(self._note("third", mean))

    def _note(self, step: str, mean: Any) -> Any:
        self.log.append((step, int(mean[0])))
        self.threads[step] = threading.current_thread()
        return mean


async def read(stage: WorkerStage, value: int = 1, n: int = 1, **options: Any) -> BatchResult:
    """Enters and runs one batch of ROIs full of one value."""
    await stage.enter()
    return await stage.run(np.full((n, 2, 2, 2), value, np.uint8), **options)


def run(reader: Any, scenario: Callable[[WorkerStage], Coroutine[Any, Any, Any]]) -> Any:
    """What ``scenario`` returns of a stage with ``reader``."""

    async def with_stage() -> Any:
        stage = WorkerStage(reader)
        try:
            async with asyncio.timeout(60):
                return await scenario(stage)
        finally:
            if isinstance(reader, ThreeSteps):
                reader.gate.set()
            await stage.close()

    return asyncio.run(with_stage())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_each_step_has_a_thread_of_its_own() -> None:
    """None of them is the event loop's; the readings are those of the last step."""
    reader = ThreeSteps()
    result = run(reader, lambda stage: read(stage, 51))
    assert result.readings.probability.tolist() == [0.2]
    assert result.compute_s >= 0.0
    assert len({*reader.threads.values(), threading.main_thread()}) == 4


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (plain([0.5, float("nan")], [1.0, 1.0]), "probability"),
        (plain([0.5, 1.5], [1.0, 1.0]), "probability"),
        (plain([0.5, 0.5], [1.0, float("inf")]), "diameter"),
        (plain([0.5, 0.5], [1.0, -1.0]), "diameter"),
        (plain([0.5], [1.0, 1.0]), "2 ROIs"),
        (replace(plain([0.5] * 2, [1.0] * 2), malignancy=np.array([0.5, 1.5])), "malignancy"),
        (None, "TypeError"),
        (([0.5, 0.5], [1.0, 1.0]), "AttributeError"),
    ],
)
def test_an_invalid_answer_is_a_failed_model(answer: Any, word: str) -> None:
    """NaN, numbers out of range, wrong shapes and no readings at all never reach a report."""
    with pytest.raises(ModelFailed, match=rf"^steps: .*{word}"):
        run(ThreeSteps(lambda _: answer), lambda stage: read(stage, n=2))


def test_a_batch_enters_when_the_first_step_is_free_and_not_before() -> None:
    """With the second step held, one batch is in it, one after the first step, a third outside."""
    reader = ThreeSteps()
    reader.gate.clear()

    async def scenario(stage: WorkerStage) -> None:
        tasks = [asyncio.create_task(read(stage, value)) for value in (1, 2, 3)]
        await until(lambda: ("first", 2) in reader.log)
        assert reader.log == [("first", 1), ("first", 2)]
        reader.gate.set()
        results = await asyncio.gather(*tasks)
        assert [one.readings.diameter_mm.tolist() for one in results] == [[1.0], [2.0], [3.0]]

    run(reader, scenario)


def test_a_step_that_fails_fails_its_batch_alone() -> None:
    """The batches before and behind it are read, and the stage is free again."""

    async def scenario(stage: WorkerStage) -> None:
        one, failed, other = await asyncio.gather(
            *(read(stage, value) for value in (1, 255, 2)), return_exceptions=True
        )
        assert isinstance(failed, ModelFailed)
        assert "steps: ValueError: all 255" in failed.reason
        for result, value in ((one, 1.0), (other, 2.0), (await read(stage, 3), 3.0)):
            assert isinstance(result, BatchResult)
            assert result.readings.diameter_mm.tolist() == [value]

    run(ThreeSteps(), scenario)


def test_a_batch_abandoned_between_steps_goes_no_further() -> None:
    """`is_wanted` is asked before each step; the next step is then free for another batch."""
    reader, wanted = ThreeSteps(), {1: True, 2: True}
    reader.gate.clear()

    async def scenario(stage: WorkerStage) -> None:
        async def read_unwanted(value: int) -> None:
            with pytest.raises(BatchAbandoned):
                await read(stage, value, is_wanted=lambda: wanted[value])

        tasks = [asyncio.create_task(read_unwanted(value)) for value in (1, 2)]
        await until(lambda: ("first", 2) in reader.log)
        wanted[1] = wanted[2] = False
        reader.gate.set()
        await asyncio.gather(*tasks)
        assert (await read(stage, 3)).readings.diameter_mm.tolist() == [3.0]
        done = [("first", 1), ("first", 2), ("second", 1)]
        assert reader.log == [*done, ("first", 3), ("second", 3), ("third", 3)]

    run(reader, scenario)
