"""Timing passes of a network in turn."""

from __future__ import annotations

import itertools

import numpy as np

from evaluation.network import Contestant, as_json, run_in_turn
from models.runtime.artifacts import find
from models.runtime.session import Session


def contestant(engine: str, calls: list[str]) -> Contestant:
    """A session that only notes that it was run."""

    def run(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        calls.append(engine)
        return (np.zeros(len(batch), np.float32),)

    return Contestant(Session(find("screening-int8"), engine, 2, run), [])


def test_contestants_take_turns_after_a_warm_up() -> None:
    """Two passes each do not count, then they alternate."""
    calls: list[str] = []
    pair = [contestant("a", calls), contestant("b", calls)]
    run_in_turn(pair, (16, 16, 16), range(3))
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert all(len(c.took_s) == 3 for c in pair)


def test_the_ratio_is_taken_round_by_round() -> None:
    """With a clock under which b takes twice as long as a, its ratio is 2."""
    calls: list[str] = []
    pair = [contestant("a", calls), contestant("b", calls)]
    ticks = itertools.accumulate(itertools.cycle([1.0, 0.0, 2.0, 0.0]), initial=0.0)
    run_in_turn(pair, (16, 16, 16), range(4), clock=lambda: next(ticks))
    found = as_json(pair, (16, 16, 16), 1)["passes"]
    assert [p["ratio_to_first"] for p in found] == [1.0, 2.0]
    assert [p["median_ms"] for p in found] == [1000.0, 2000.0]
