from evaluation.links.proxy import Conditions, State, read_trace, shipped_traces, steady


def test_lines_hold_until_the_next_and_repeat() -> None:
    trace = read_trace("flapping")
    assert trace.name == "flapping"
    assert trace.at(0.0) == Conditions(20, 5, 20_000, 50_000, State.UP)
    states = [trace.at(time).state for time in (3.99, 4.0, 5.99, 6.0, 24.0, 29.0, 23.0 + 2400)]
    up, reset = State.UP, State.RESET
    assert states == [up, reset, reset, up, up, reset, State.BLACK_HOLE]


def test_without_repeat_the_last_line_stays() -> None:
    assert read_trace("black-hole").at(1e6).state is State.BLACK_HOLE
    assert steady(Conditions(latency_ms=3)).at(1e6).latency_ms == 3


def test_the_shipped_traces_match_their_names() -> None:
    traces = {one.name: one for one in shipped_traces()}
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
