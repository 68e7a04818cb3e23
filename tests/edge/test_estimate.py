from __future__ import annotations

import pytest

from edge.estimate import LinkEstimate, Pace

MB = 1_000_000


def test_a_steady_link_takes_the_time_of_a_flow_line() -> None:
    """Ten regions: the slowest machine ten times, the others once, beside round trip and queue."""
    link = LinkEstimate.steady(Pace(0.1, MB, 1e12, queue_s=0.2, roi_s=0.05))
    assert link.expected_s(10, 100_000) == pytest.approx(0.1 + 0.2 + 10 * 0.1 + 0.05)
    assert link.completion_s(10, 100_000, 0.95) == pytest.approx(0.1 + 0.2 + 10 * 0.05 + 0.01)


def test_one_region_passes_every_machine() -> None:
    """It is sent, read and answered one after the other."""
    link = LinkEstimate.steady(Pace(0.1, MB, 5120.0, queue_s=0.0, roi_s=0.3))
    assert link.expected_s(1, 500_000) == pytest.approx(0.1 + 0.5 + 0.3 + 0.1)


@pytest.mark.parametrize(("queue_s", "busy"), [(0.3, True), (0.1, False), (0.0, False)])
def test_a_cloud_is_busy_where_its_queue_is_longer_than_a_round_trip(
    queue_s: float, busy: bool
) -> None:
    """Of 0.1 s here."""
    assert Pace(0.1, MB, MB, queue_s, 0.05).busy is busy


def test_slow_parts_add_as_squares() -> None:
    """Deviations of 0.3 s and 0.4 s from the medians make one of 0.5 s."""
    middle = Pace(0.1, 1e12, 1e12, queue_s=0.1, roi_s=0.0)
    slow = Pace(0.4, 1e12, 1e12, queue_s=0.5, roi_s=0.0)
    link = LinkEstimate(middle=middle, slow=slow)
    assert link.completion_s(1, 1, 0.95) == pytest.approx(0.2 + 0.5, abs=1e-6)
    assert link.completion_s(1, 1, 0.5) == pytest.approx(0.2, abs=1e-6)
    assert link.completion_s(1, 1, 0.99) > 0.7
