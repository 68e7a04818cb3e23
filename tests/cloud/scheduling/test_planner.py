from __future__ import annotations

import numpy as np

from cloud.scheduling.planner import batch_size, forecast
from tests.cloud.scheduling.builders import entry, timing


def test_a_batch_makes_none_of_its_rois_late() -> None:
    """From 50 s on a batch of n is answered at 52 + n: with one due at 55, no more than three."""
    due = [entry(at_s) for at_s in (55.0, 80.0, 80.0, 80.0)]
    assert batch_size(due, 50.0, timing()) == 3
    assert batch_size(due, 49.0, timing()) == 4
    assert batch_size([due[1], due[0], *due[2:]], 52.5, timing()) == 1


def test_a_batch_is_no_larger_than_is_efficient() -> None:
    """Where a batch has no cost of its own, ROIs are read one by one and answered earlier."""
    due = [entry(80.0) for _ in range(4)]
    assert batch_size(due, 50.0, timing(fixed_s=0.0)) == 1
    assert batch_size(due, 50.0, timing(fixed_s=0.2)) == 2


def test_batches_follow_each_other() -> None:
    """Six ROIs in batches of four and two: 6 s, and 4 s after that."""
    answered_s = forecast([entry(90.0) for _ in range(6)], 50.0, timing())
    np.testing.assert_allclose(answered_s, [56.0] * 4 + [60.0] * 2)


def test_a_pipeline_takes_the_next_batch_before_it_has_answered() -> None:
    """Where the next batch may start after a third of the time, batches overlap."""
    answered_s = forecast([entry(90.0) for _ in range(8)], 50.0, timing(interval=1 / 3))
    np.testing.assert_allclose(answered_s, [56.0] * 4 + [58.0] * 4)


def test_a_late_roi_delays_no_other() -> None:
    """An ROI that would be late even alone is not read."""
    assert forecast([entry(51.0), entry(90.0)], 50.0, timing()) == [53.0, 53.0]
