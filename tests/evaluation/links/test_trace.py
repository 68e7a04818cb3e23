from pathlib import Path

import pytest

from evaluation.errors import BadTable
from evaluation.links.trace import Conditions, State, find_trace, read_trace, shipped_names, steady

HEAD = "time,latency_ms,jitter_ms,up_kbit,down_kbit,state\n"


def write(folder: Path, lines: str) -> Path:
    path = folder / "own.csv"
    path.write_text(HEAD + lines)
    return path


def test_lines_hold_until_the_next_and_repeat(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "0,5,1,100,200,up\n2,5,1,100,200,reset\n3,0,0,0,0,repeat\n"))
    assert trace.name == "own"
    assert trace.at(0.0) == Conditions(5, 1, 100, 200, State.UP)
    states = [trace.at(time).state for time in (1.99, 2.0, 2.99, 3.0, 4.99, 5.5, 302.5)]
    up, reset = State.UP, State.RESET
    assert states == [up, reset, reset, up, up, reset, reset]


def test_without_repeat_the_last_line_stays(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "0,5,1,100,200,up\n2,0,0,0,0,black-hole\n"))
    assert trace.at(1e6).state is State.BLACK_HOLE
    assert steady(Conditions(latency_ms=3)).at(1e6).latency_ms == 3


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "do not begin at 0"),
        ("1,5,1,100,200,up\n", "do not begin at 0"),
        ("0,5,1,100,200,up\n0,5,1,100,200,stall\n", "do not rise"),
        ("0,5,1,100,200,up\n0,0,0,0,0,repeat\n", "must come after time 0"),
        ("0,5,1,100,200,broken\n", "broken"),
        ("0,-5,1,100,200,up\n", "not be below 0"),
        ("0,x,1,100,200,up\n", "not a number"),
    ],
)
def test_an_invalid_trace_is_refused(tmp_path: Path, lines: str, reason: str) -> None:
    with pytest.raises(BadTable, match=reason):
        read_trace(write(tmp_path, lines))


def test_the_shipped_traces_match_their_names() -> None:
    traces = {name: find_trace(name) for name in shipped_names()}
    required = {"fibre", "dsl", "lte-good", "lte-poor", "satellite", "flapping", "dead",
                "swallow"}  # fmt: skip
    assert required <= set(traces)
    assert traces["fibre"].at(0) == Conditions(5, 0.5, 100_000, 100_000)
    assert (traces["dsl"].at(0).down_kbit, traces["dsl"].at(0).up_kbit) == (20_000, 2_000)
    assert traces["satellite"].at(0).latency_ms == 600
    assert traces["dead"].at(9).state is State.RESET
    swallow = {traces["swallow"].at(time).state for time in range(12)}
    assert swallow == {State.UP, State.BLACK_HOLE, State.HALF_OPEN}
    assert traces["swallow"].at(0) == traces["swallow"].at(12)
    flaps = {traces["flapping"].at(time).state for time in range(24)}
    assert flaps == set(State)
