import asyncio
import itertools
import time
from typing import Any

import numpy as np
import pytest

from cloud.workers import WorkerStage
from evaluation.timing.network import Contestant, compare, contestant_rows, passes
from models.runtime.artifacts import find
from models.runtime.second_reader import Readings
from models.runtime.session import Session
from tests.plain_readings import plain


def session(engine: str, calls: list[str]) -> Session:
    def run(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        calls.append(engine)
        return (np.zeros(len(batch), np.float32),)

    return Session(find("screening-int8"), engine, 2, run)


def test_sessions_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    found = passes([session("a", calls), session("b", calls)], (16, 16, 16), range(3))
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert [one["engine"] for one in found] == ["a", "b"]


def test_the_ratio_is_taken_round_by_round() -> None:
    calls: list[str] = []
    pair = [session("a", calls), session("b", calls)]
    ticks = itertools.accumulate(itertools.cycle([1.0, 0.0, 2.0, 0.0]), initial=0.0)
    found = passes(pair, (16, 16, 16), range(4), clock=lambda: next(ticks))
    assert [p["ratio_to_first"] for p in found] == [1.0, 2.0]
    assert [p["median_ms"] for p in found] == [1000.0, 2000.0]


class Counting:
    """A reader that records whose batch it was given."""

    version, engine, roi_shape = "1", "none", (2, 2, 2)

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def read(self, batch: Any) -> Readings:
        self._log.append(self.name)
        return plain(np.zeros(len(batch)), np.zeros(len(batch)))


def compared(*readers: Any, batches: int, rounds: int) -> list[Contestant]:
    async def run() -> list[Contestant]:
        entered = [Contestant(one.name, 1, WorkerStage(one)) for one in readers]
        await compare(entered, np.zeros((3, 2, 2, 2), np.uint8), batches=batches, rounds=rounds)
        return entered

    return asyncio.run(run())


def test_contestants_take_turns() -> None:
    """Two warm-up batches each, then one alone and the rest, A B A B."""
    log: list[str] = []
    entered = compared(*(Counting(name, log) for name in "ab"), batches=4, rounds=2)
    assert "".join(log) == "aabb" + ("aaaaa" + "bbbbb") * 2
    assert all(len(c.per_s) == len(c.busy_s) == len(c.alone_s) == 2 for c in entered)


def test_ratios_are_taken_round_by_round() -> None:
    stage: Any = None
    first = Contestant("whole", 1, stage, [10.0, 20.0, 30.0], [2.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    second = Contestant("parts", 2, stage, [20.0, 40.0, 60.0], [3.0, 3.0, 6.0], [3.0, 6.0, 12.0])
    one, two = contestant_rows([first, second])
    assert (one["throughput_ratio"], two["throughput_ratio"]) == (1.0, 2.0)
    assert two["alone_ratio"] == pytest.approx(3.0)
    assert two["busy_ratio"] == pytest.approx(1.5)
    assert (two["stages"], two["rois_per_s"], two["busy_ms"]) == (2, 40.0, 3000.0)


def test_each_batch_of_a_full_pipeline_is_timed_from_its_entry() -> None:
    """Two are processed at once: their times together are more than the time that passed."""

    class Slow:
        name = "slow"

        def __init__(self) -> None:
            self.steps = (self._wait, self._end)

        def _wait(self, batch: Any) -> Any:
            time.sleep(0.02)
            return batch

        def _end(self, batch: Any) -> Readings:
            time.sleep(0.02)
            return plain(np.zeros(len(batch)), np.zeros(len(batch)))

    (entered,) = compared(Slow(), batches=8, rounds=1)
    took_s = 8 * 3 / entered.per_s[0]
    assert took_s < 8 * entered.busy_s[0]
    assert entered.busy_s[0] >= 0.04
    assert entered.alone_s[0] >= 0.04
