"""The reader as a stage: off the event loop, and never trusted blindly."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cloud.workers import BatchAbandoned, BatchResult, WorkerStage
from imaging.volume import UInt8Array
from protos.errors import ModelFailed
from tests.plain_readings import plain


class Says:
    """A reader that answers what it is told to, and remembers its thread."""

    name, version, engine, roi_shape = "says", "1", "none", (2, 2, 2)

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.thread: threading.Thread | None = None

    def read(self, _batch: UInt8Array) -> Any:
        """The answer that it was made with."""
        self.thread = threading.current_thread()
        return self._answer


def readings_of(reader: Any) -> BatchResult:
    """What a stage makes of a batch of two."""

    async def run() -> BatchResult:
        stage = WorkerStage(reader)
        await stage.enter()
        try:
            return await stage.run(np.zeros((2, 2, 2, 2), np.uint8))
        finally:
            stage.close()

    return asyncio.run(run())


def test_a_batch_is_read_in_a_thread_of_its_own() -> None:
    """The event loop is free while the model works, and the answer is the model's."""
    reader = Says(plain([0.25, 1.0], [4.0, 0.0]))
    timed = readings_of(reader)
    assert timed.readings.probability.tolist() == [0.25, 1.0]
    assert timed.readings.diameter_mm.tolist() == [4.0, 0.0]
    assert timed.compute_s >= 0.0
    assert reader.thread is not threading.main_thread()


@pytest.mark.parametrize(
    ("probability", "diameter_mm", "word"),
    [
        ([0.5, float("nan")], [1.0, 1.0], "probability"),
        ([0.5, 1.5], [1.0, 1.0], "probability"),
        ([0.5, 0.5], [1.0, float("inf")], "diameter"),
        ([0.5, 0.5], [1.0, -1.0], "diameter"),
        ([0.5], [1.0, 1.0], "2 ROIs"),
    ],
)
def test_an_answer_that_cannot_be_is_a_failed_model(
    probability: list[Any], diameter_mm: list[Any], word: str
) -> None:
    """NaN, numbers out of range and wrong shapes never reach a report."""
    with pytest.raises(ModelFailed, match=word):
        readings_of(Says(plain(probability, diameter_mm)))


def test_a_malignancy_that_cannot_be_is_a_failed_model() -> None:
    """It is a probability too."""
    answer = replace(plain([0.5, 0.5], [1.0, 1.0]), malignancy=np.array([0.5, 1.5]))
    with pytest.raises(ModelFailed, match="malignancy"):
        readings_of(Says(answer))


@pytest.mark.parametrize("answer", [None, ([0.5, 0.5], [1.0, 1.0])])
def test_an_answer_that_is_none_is_a_failed_model(answer: Any) -> None:
    """Even a reader that breaks its word does no more than fail its batch."""
    with pytest.raises(ModelFailed, match="says"):
        readings_of(Says(answer))


def test_the_next_batch_may_enter_when_the_last_is_read() -> None:
    """One batch at a time; one that fails makes room too."""

    async def line() -> None:
        stage = WorkerStage(Says(None))
        await stage.enter()
        waiting = asyncio.create_task(stage.enter())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(ModelFailed):
            await stage.run(np.zeros((1, 2, 2, 2), np.uint8))
        await asyncio.wait_for(waiting, 20)
        stage.close()

    asyncio.run(line())


def test_a_batch_that_nobody_wants_is_not_read() -> None:
    """And makes room for the next."""

    async def line() -> None:
        reader = Says(plain([0.5], [1.0]))
        stage = WorkerStage(reader)
        await stage.enter()
        with pytest.raises(BatchAbandoned):
            await stage.run(np.zeros((1, 2, 2, 2), np.uint8), lambda: False)
        assert reader.thread is None
        await asyncio.wait_for(stage.enter(), 20)
        stage.close()

    asyncio.run(line())
