import itertools

import numpy as np

from evaluation.timing.network import passes
from models.runtime.artifacts import find
from models.runtime.session import Session


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
