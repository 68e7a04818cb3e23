"""The reader as a stage: off the event loop, and never trusted blindly."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from cloud.stages import ReaderStage, Readings
from imaging.volume import UInt8Array
from protos.errors import ModelFailed


class Says:
    """A reader that answers what it is told to, and remembers its thread."""

    name, version, engine, roi_shape = "says", "1", "none", (2, 2, 2)

    def __init__(self, probability: Any, diameter_mm: Any) -> None:
        self._answer = probability, diameter_mm
        self.thread: threading.Thread | None = None

    def read(self, batch: UInt8Array) -> tuple[Any, Any]:  # noqa: ARG002 - it does not look
        """The answer that it was made with."""
        self.thread = threading.current_thread()
        return self._answer


def readings_of(reader: Any) -> Readings:
    """What a stage makes of a batch of two."""

    async def run() -> Readings:
        stage = ReaderStage(reader)
        try:
            return await stage.run(np.zeros((2, 2, 2, 2), np.uint8))
        finally:
            stage.close()

    return asyncio.run(run())


def test_a_batch_is_read_in_a_thread_of_its_own() -> None:
    """The event loop is free while the model works, and the answer is the model's."""
    reader = Says(np.array([0.25, 1.0]), np.array([4.0, 0.0]))
    readings = readings_of(reader)
    assert readings.probability.tolist() == [0.25, 1.0]
    assert readings.diameter_mm.tolist() == [4.0, 0.0]
    assert readings.compute_s >= 0.0
    assert reader.thread is not threading.main_thread()


@pytest.mark.parametrize(
    ("probability", "diameter_mm", "word"),
    [
        ([0.5, float("nan")], [1.0, 1.0], "probability"),
        ([0.5, 1.5], [1.0, 1.0], "probability"),
        ([0.5, 0.5], [1.0, float("inf")], "diameter"),
        ([0.5, 0.5], [1.0, -1.0], "diameter"),
        ([0.5], [1.0, 1.0], "2 ROIs"),
        ([[0.5], [0.5]], [1.0, 1.0], "2 ROIs"),
    ],
)
def test_an_answer_that_cannot_be_is_a_failed_model(
    probability: list[Any], diameter_mm: list[Any], word: str
) -> None:
    """NaN, numbers out of range and wrong shapes never reach a report."""
    with pytest.raises(ModelFailed, match=word):
        readings_of(Says(np.array(probability), np.array(diameter_mm)))


@pytest.mark.parametrize("answer", [(None, None), ([0.5, 0.5], [1.0, 1.0])])
def test_an_answer_that_is_no_array_is_a_failed_model(answer: tuple[Any, Any]) -> None:
    """Even a reader that breaks its word does no more than fail its batch."""
    with pytest.raises(ModelFailed, match="says"):
        readings_of(Says(*answer))
