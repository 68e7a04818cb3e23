import random

import pytest

from process.backoff import doubled, pause_s


def test_pauses_double_up_to_the_longest() -> None:
    """Also after more failures than a number could hold."""
    pauses = [pause_s(failures, 1.0, 10.0, lambda _, most: most) for failures in (1, 2, 3, 5, 5000)]
    assert pauses == [1.0, 2.0, 4.0, 10.0, 10.0]
    assert doubled(0.25, 10.0, 0) == 0.25


@pytest.mark.parametrize(("least", "low"), [(0.5, 2.0), (0.0, 0.0), (1.0, 4.0)])
def test_a_pause_is_drawn_below_what_is_allowed(least: float, low: float) -> None:
    assert pause_s(3, 1.0, 10.0, lambda low, _: low, least) == low
    assert low <= pause_s(3, 1.0, 10.0, random.uniform, least) <= 4.0
