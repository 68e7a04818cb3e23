from __future__ import annotations

import pytest

from edge.evidence import Evidence
from tests.edge.cases import HandClock


def test_before_anything_is_measured_the_prior_holds() -> None:
    """The median and the 95th percentile are those that were believed."""
    evidence = Evidence((1.0, 4.0), HandClock())
    assert (evidence.quantile(0.5), evidence.quantile(0.95)) == (1.0, 4.0)


@pytest.mark.parametrize("value", [0.1, 2.0, 9.0])
def test_one_measurement_moves_the_median_but_tells_nothing_of_the_tail(value: float) -> None:
    """The median is what was seen; the slow side is the slower of that and the prior's."""
    evidence = Evidence((1.0, 4.0), HandClock())
    evidence.add(value)
    assert evidence.quantile(0.5) == value
    assert evidence.quantile(0.95) == max(value, 4.0)


def test_many_measurements_outweigh_the_prior() -> None:
    """Of 1 to 60 the median is 30 or so and the 95th percentile 57, whatever was believed."""
    evidence = Evidence((1000.0, 2000.0), HandClock())
    for value in range(1, 61):
        evidence.add(float(value))
    assert evidence.quantile(0.5) == pytest.approx(30, abs=1)
    assert evidence.quantile(0.95) == pytest.approx(57, abs=1)


def test_what_is_old_counts_for_less() -> None:
    """Two fresh measurements outweigh three of two half-lives ago."""
    clock = HandClock()
    evidence = Evidence((1.0, 1.0), clock, half_life_s=60.0)
    for _ in range(3):
        evidence.add(5.0)
    clock.sleep(120.0)
    for _ in range(2):
        evidence.add(2.0)
    assert evidence.quantile(0.5) == 2.0


def test_in_the_end_everything_is_forgotten() -> None:
    """After twenty half-lives without a measurement the prior holds again."""
    clock = HandClock()
    evidence = Evidence((1.0, 4.0), clock, half_life_s=60.0)
    for _ in range(64):
        evidence.add(100.0)
    clock.sleep(20 * 60.0)
    assert (evidence.quantile(0.5), evidence.quantile(0.95)) == (1.0, 4.0)


def test_a_bound_counts_until_five_measurements_have_come_since() -> None:
    """What was slower once is slow at first, and forgiven then."""
    evidence = Evidence((1.0, 1.0), HandClock())
    for _ in range(10):
        evidence.add(2.0)
    evidence.add_bound(9.0)
    for _ in range(4):
        evidence.add(2.0)
        assert evidence.quantile(0.95) == 9.0
    evidence.add(2.0)
    assert evidence.quantile(0.95) == 2.0


def test_each_bound_that_is_remembered_asks_for_five_measurements_more() -> None:
    """After a second one nine are not enough."""
    evidence = Evidence((1.0, 1.0), HandClock())
    for measurements in (5, 9):
        evidence.add_bound(9.0)
        for _ in range(measurements):
            evidence.add(2.0)
    assert evidence.quantile(0.95) == 9.0
    evidence.add(2.0)
    assert evidence.quantile(0.95) == 2.0


def test_however_many_bounds_are_forgiven_after_twenty_measurements() -> None:
    """A bad hour is not held against the link all day."""
    evidence = Evidence((1.0, 1.0), HandClock())
    for _ in range(9):
        evidence.add_bound(9.0)
    for _ in range(20):
        assert evidence.quantile(0.95) == 9.0
        evidence.add(2.0)
    assert evidence.quantile(0.95) == 2.0


def test_a_bound_is_no_measurement() -> None:
    """Nothing was measured where nothing came."""
    evidence = Evidence((1.0, 1.0), HandClock())
    evidence.add_bound(9.0)
    assert not evidence.measured
    evidence.add(2.0)
    assert evidence.measured
