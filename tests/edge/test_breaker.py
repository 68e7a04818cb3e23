from __future__ import annotations

import pytest

from edge.breaker import Breaker
from tests.edge.cases import HandClock


def broken(clock: HandClock) -> Breaker:
    """One that two failures have opened for 30 s."""
    breaker = Breaker(clock, failures=2, cool_off_s=30.0)
    for _ in range(2):
        assert breaker.enter()
        breaker.failed("Unreachable: refused")
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """Nobody is let in, and the reason names the last fault and the wait."""
    breaker = broken(HandClock())
    assert not breaker.enter()
    assert breaker.why_shut == "Unreachable: refused; not asked again for 30 s"


def test_failures_count_only_in_a_row() -> None:
    """A success between them begins the count anew."""
    breaker = Breaker(HandClock(), failures=2, cool_off_s=30.0)
    breaker.failed("x")
    breaker.succeeded()
    breaker.failed("x")
    assert breaker.enter()


def test_exactly_one_probe_is_let_in() -> None:
    """After the cool-off the first enters and all others are turned away until it has ended."""
    clock = HandClock()
    breaker = broken(clock)
    clock.sleep(30.0)
    assert breaker.half_open
    assert [breaker.enter() for _ in range(4)] == [True, False, False, False]
    assert "another study is finding out" in breaker.why_shut


def test_a_probe_that_succeeds_closes_it() -> None:
    """From then on everyone is let in, and it takes as many failures as ever to open it."""
    clock = HandClock()
    breaker = broken(clock)
    clock.sleep(30.0)
    breaker.enter()
    breaker.succeeded()
    breaker.failed("x")
    assert breaker.enter()
    assert breaker.enter()
    assert not breaker.half_open


def test_a_probe_that_fails_opens_it_again() -> None:
    """One failure is enough, for another whole cool-off."""
    clock = HandClock()
    breaker = broken(clock)
    clock.sleep(30.0)
    breaker.enter()
    breaker.failed("DeadlinePassed: late")
    clock.sleep(29.0)
    assert not breaker.enter()
    clock.sleep(1.0)
    assert breaker.enter()


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_probe_that_tells_nothing_leaves_its_place(rounds: int) -> None:
    """The next one is let in as the probe."""
    clock = HandClock()
    breaker = broken(clock)
    clock.sleep(30.0)
    for _ in range(rounds):
        assert breaker.enter()
        breaker.left()
    assert breaker.half_open
    assert breaker.enter()
