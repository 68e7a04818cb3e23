"""Comparing the model whole and in parts."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cloud.stages import ReaderStage
from evaluation.stages import Contestant, as_json, compare
from models.runtime.readings import Readings
from tests.plain_readings import plain


class Counting:
    """A reader that notes whose batch it was given."""

    version, engine, roi_shape = "1", "none", (2, 2, 2)

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def read(self, batch: Any) -> Readings:
        """Nothing of worth."""
        self._log.append(self.name)
        return plain(np.zeros(len(batch)), np.zeros(len(batch)))


def test_contestants_take_turns() -> None:
    """Two batches each that do not count, then one alone and the rest, A B A B."""
    log: list[str] = []

    async def run() -> list[Contestant]:
        entered = [Contestant(name, ReaderStage(Counting(name, log))) for name in "ab"]
        await compare(entered, np.zeros((3, 2, 2, 2), np.uint8), batches=4, rounds=2)
        for contestant in entered:
            contestant.stage.close()
        return entered

    entered = asyncio.run(run())
    assert "".join(log) == "aabb" + ("aaaaa" + "bbbbb") * 2
    assert all(len(c.per_s) == len(c.alone_s) == 2 for c in entered)


def test_ratios_are_taken_round_by_round() -> None:
    """Twice as fast in each round is a ratio of 2, however the rounds differ."""
    stage: Any = None
    first = Contestant("whole", stage, [10.0, 20.0, 30.0], [1.0, 2.0, 4.0])
    second = Contestant("parts", stage, [20.0, 40.0, 60.0], [3.0, 6.0, 12.0])
    one, two = as_json([first, second])["contestants"]
    assert (one["throughput_ratio"], two["throughput_ratio"]) == (1.0, 2.0)
    assert two["alone_ratio"] == pytest.approx(3.0)
    assert two["rois_per_s"] == 40.0
