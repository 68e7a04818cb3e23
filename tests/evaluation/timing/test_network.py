import itertools
import json

import numpy as np
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.timing.network import measure, multiply_adds
from models.networks.screening import ScreeningSpec
from models.runtime.artifacts import find
from models.runtime.session import Session


def session(engine: str, calls: list[str]) -> Session:
    def run(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        calls.append(engine)
        return (np.zeros(len(batch), np.float32),)

    return Session(find("screening-int8"), engine, 2, run)


def test_sessions_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    found = measure([session("a", calls), session("b", calls)], (16, 16, 16), range(3))
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert found["rounds"] == 3


def test_the_ratio_is_taken_round_by_round() -> None:
    calls: list[str] = []
    pair = [session("a", calls), session("b", calls)]
    ticks = itertools.accumulate(itertools.cycle([1.0, 0.0, 2.0, 0.0]), initial=0.0)
    found = measure(pair, (16, 16, 16), range(4), clock=lambda: next(ticks))["passes"]
    assert [p["ratio_to_first"] for p in found] == [1.0, 2.0]
    assert [p["median_ms"] for p in found] == [1000.0, 2000.0]


def by_hand(spec: ScreeningSpec, side: int) -> int:
    """The screening network's multiply-adds from its spec alone."""
    half, quarter, eighth, sixteenth = spec.widths
    grids = [(side // n) ** 3 for n in (2, 4, 8, 16)]
    total = grids[0] * 8 * half + grids[1] * 8 * half * quarter
    total += grids[2] * 8 * quarter * eighth + grids[3] * 8 * eighth * sixteenth
    for grid, width, count in zip(grids[1:], spec.widths[1:], spec.blocks, strict=True):
        total += count * grid * 12 * width**2
    total += grids[3] * sixteenth * eighth + grids[2] * eighth * quarter
    return total + grids[1] * (12 * quarter**2 + 5 * quarter)


def test_the_count_is_the_one_by_hand() -> None:
    spec = ScreeningSpec(blocks=(1, 3, 4))
    for name in ("screening-fp32", "screening-int8"):
        assert multiply_adds(find(name), 48) == by_hand(spec, 48)


def test_an_roi_of_the_student_costs_at_most_22_per_cent() -> None:
    done = CliRunner().invoke(app, ["cost", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["saved"] >= 0.78
