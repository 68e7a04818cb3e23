"""The instances of the model and their stages: devices, threads, steps, and answers not trusted."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from cloud.instances import BatchAbandoned, BatchResult, Instances, WorkerStage, open_instances
from cloud.run import opened_reader
from cloud.settings import BadSettings, CloudSettings
from imaging.volume import UInt8Array
from models.runtime import hardware
from protos.errors import ModelFailed
from protos.messages import Verdict
from tests.cloud.running import MeanReader, make_roi, make_stream, read, run_cloud
from tests.plain_readings import plain


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("", 0)]),
        ({"threads": 3}, [("", 3)]),
        ({"instances": 2}, [("", 2), ("", 2)]),
        ({"instances": 2, "threads": 3}, [("", 3), ("", 3)]),
        ({"devices": ["cuda:0", "cuda:1"]}, [("cuda:0", 2), ("cuda:1", 2)]),
        ({"devices": ["cpu", "GPU.0"], "instances": 2}, [("cpu", 1), ("GPU.0", 1)] * 2),
    ],
)
def test_instances_go_to_devices_in_turn_and_divide_the_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    opened: list[tuple[str, int]] = []

    def open_one(device: str, threads: int) -> MeanReader:
        opened.append((device, threads))
        return MeanReader()

    reader = open_instances(CloudSettings(**settings), open_one)
    assert isinstance(reader, Instances) is (len(expected) > 1)
    assert (reader.name, reader.version, reader.roi_shape) == ("mean", "2.1", (8, 8, 8))
    assert reader.engine == ("numpy" if len(expected) == 1 else f"{len(expected)} x numpy")
    assert opened == expected


def test_ray_without_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "cloud.ray_actors", raising=False)
    with pytest.raises(BadSettings, match=r"overread\[ray\]"):
        opened_reader(CloudSettings(ray="local"), lambda *_: MeanReader()).__enter__()


class Pair(Instances):
    """Two copies, with what `run_cloud` needs of a reader."""

    gate: ClassVar = threading.Event()
    batches: ClassVar[list[Any]] = []


def test_a_service_with_two_instances_answers_and_counts_them() -> None:
    reader: Any = Pair((MeanReader(), MeanReader()))
    with run_cloud(reader) as cloud:
        assert cloud.count("instances") == 2
        responses = read(cloud, make_stream(*(make_roi(i) for i in range(4))))
        assert len(responses) == 5
        while not cloud.count("dropped_instances"):
            read(cloud, make_stream(make_roi(1, 255)))  # fails
        assert (cloud.count("instances"), cloud.count("dropped_instances")) == (1, 1)
        assert isinstance(read(cloud, make_stream(make_roi(1)))[0], Verdict)


class Recovering:
    """A reader that fails at every other batch, and counts how often it recovered."""

    name, version, engine, roi_shape = "recovering", "1", "none", (2, 2, 2)

    def __init__(self, *, works: bool = True) -> None:
        self.reads = self.recovered = 0
        self._works = works

    def read(self, batch: UInt8Array) -> Any:
        self.reads += 1
        if self.reads % 2:
            raise ValueError("it died")
        return plain([0.5] * len(batch), [1.0] * len(batch))

    def recover(self) -> None:
        self.recovered += 1
        if not self._works:
            raise ModelFailed("it does not start again")


def test_a_reader_recovers_before_the_next_batch() -> None:
    """It is called once for each failure; without success no batch may enter."""

    async def scenario() -> None:
        reader, batch = Recovering(), np.zeros((1, 2, 2, 2), np.uint8)
        stage = WorkerStage(reader)
        for _ in range(3):
            await stage.enter()
            with pytest.raises(ModelFailed, match="it died"):
                await stage.run(batch)
            await stage.enter()
            await stage.run(batch)
        assert reader.recovered == 3
        await stage.close()
        broken = WorkerStage(Recovering(works=False))
        await broken.enter()
        with pytest.raises(ModelFailed, match="it died"):
            await broken.run(batch)
        for _ in range(2):
            with pytest.raises(ModelFailed, match="does not start again"):
                await broken.enter()
        await broken.close()

    asyncio.run(scenario())


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
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
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


async def run_batch(stage: WorkerStage, value: int = 1, n: int = 1, **options: Any) -> BatchResult:
    """Enters and runs one batch of ROIs full of one value."""
    await stage.enter()
    return await stage.run(np.full((n, 2, 2, 2), value, np.uint8), **options)


def with_stage(reader: Any, scenario: Callable[[WorkerStage], Coroutine[Any, Any, Any]]) -> Any:
    """What ``scenario`` returns of a stage with ``reader``."""

    async def run() -> Any:
        stage = WorkerStage(reader)
        try:
            async with asyncio.timeout(60):
                return await scenario(stage)
        finally:
            if isinstance(reader, ThreeSteps):
                reader.gate.set()
            await stage.close()

    return asyncio.run(run())


def test_each_step_has_a_thread_of_its_own() -> None:
    """None of them is the event loop's; the readings are those of the last step."""
    reader = ThreeSteps()
    result = with_stage(reader, lambda stage: run_batch(stage, 51))
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
        with_stage(ThreeSteps(lambda _: answer), lambda stage: run_batch(stage, n=2))


def test_a_batch_enters_when_the_first_step_is_free_and_not_before() -> None:
    """With the second step held, one batch is in it, one after the first step, a third outside."""
    reader = ThreeSteps()
    reader.gate.clear()

    async def scenario(stage: WorkerStage) -> None:
        tasks = [asyncio.create_task(run_batch(stage, value)) for value in (1, 2, 3)]
        while ("first", 2) not in reader.log:
            await asyncio.sleep(0.005)
        assert reader.log == [("first", 1), ("first", 2)]
        reader.gate.set()
        results = await asyncio.gather(*tasks)
        assert [one.readings.diameter_mm.tolist() for one in results] == [[1.0], [2.0], [3.0]]

    with_stage(reader, scenario)


def test_a_step_that_fails_fails_its_batch_alone() -> None:
    """The batches before and behind it are read, and the stage is free again."""

    async def scenario(stage: WorkerStage) -> None:
        one, failed, other = await asyncio.gather(
            *(run_batch(stage, value) for value in (1, 255, 2)), return_exceptions=True
        )
        assert isinstance(failed, ModelFailed)
        assert "steps: ValueError: all 255" in failed.reason
        for result, value in ((one, 1.0), (other, 2.0), (await run_batch(stage, 3), 3.0)):
            assert isinstance(result, BatchResult)
            assert result.readings.diameter_mm.tolist() == [value]

    with_stage(ThreeSteps(), scenario)


def test_a_batch_abandoned_between_steps_goes_no_further() -> None:
    """`is_wanted` is asked before each step; the next step is then free for another batch."""
    reader, wanted = ThreeSteps(), {1: True, 2: True}
    reader.gate.clear()

    async def scenario(stage: WorkerStage) -> None:
        async def read_unwanted(value: int) -> None:
            with pytest.raises(BatchAbandoned):
                await run_batch(stage, value, is_wanted=lambda: wanted[value])

        tasks = [asyncio.create_task(read_unwanted(value)) for value in (1, 2)]
        while ("first", 2) not in reader.log:
            await asyncio.sleep(0.005)
        wanted[1] = wanted[2] = False
        reader.gate.set()
        await asyncio.gather(*tasks)
        assert (await run_batch(stage, 3)).readings.diameter_mm.tolist() == [3.0]
        done = [("first", 1), ("first", 2), ("second", 1)]
        assert reader.log == [*done, ("first", 3), ("second", 3), ("third", 3)]

    with_stage(reader, scenario)
