"""The running cost model."""

from __future__ import annotations

import pytest

from cloud.cost import CostModel


def test_nothing_is_known_before_the_first_batch() -> None:
    """Without a batch seen, an estimate is 0: nothing is refused on a guess."""
    assert CostModel().estimate_s(8) == 0.0


def test_one_batch_size_is_taken_in_proportion() -> None:
    """With one size seen, twice as many are thought to take twice as long."""
    cost = CostModel()
    cost.observe(4, 0.2)
    cost.observe(4, 0.2)
    assert cost.estimate_s(4) == pytest.approx(0.2)
    assert cost.estimate_s(8) == pytest.approx(0.4)


def test_a_straight_line_is_found() -> None:
    """A fixed cost and a cost for each are told apart once two sizes were seen."""
    cost = CostModel()
    for n in (1, 8, 4, 2, 8):
        cost.observe(n, 0.03 + 0.01 * n)
    assert cost.estimate_s(1) == pytest.approx(0.04)
    assert cost.estimate_s(16) == pytest.approx(0.19)


def test_what_is_long_past_is_forgotten() -> None:
    """A machine that became four times slower is estimated so after some sixty batches."""
    cost = CostModel()
    for _ in range(200):
        cost.observe(4, 0.1)
    for _ in range(60):
        cost.observe(4, 0.4)
    assert cost.estimate_s(4) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("times", [(0.2, 0.1), (0.01, 0.5)])
def test_no_estimate_is_negative(times: tuple[float, float]) -> None:
    """Whatever noise was seen, no batch of any size is thought to take less than nothing."""
    cost = CostModel()
    cost.observe(1, times[0])
    cost.observe(8, times[1])
    assert all(cost.estimate_s(n) >= 0.0 for n in range(20))
