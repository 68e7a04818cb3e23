from __future__ import annotations

import numpy as np

from cloud.scheduling.planner import Slot, foresee, together
from tests.cloud.claims import claim, pace


def test_nobody_is_late_for_company() -> None:
    """From 50 s on a batch of n is answered at 52 + n: with one due at 55, no more than three."""
    due = [claim(at_s) for at_s in (55.0, 80.0, 80.0, 80.0)]
    assert together(due, 50.0, pace()) == 3
    assert together(due, 49.0, pace()) == 4
    assert together([due[1], due[0], *due[2:]], 52.5, pace()) == 1


def test_company_that_saves_nothing_is_not_sought() -> None:
    """Where a batch has no cost of its own, ROIs are read one by one and answered earlier."""
    due = [claim(80.0) for _ in range(4)]
    assert together(due, 50.0, pace(fixed_s=0.0)) == 1
    assert together(due, 50.0, pace(fixed_s=0.2)) == 2


def test_batches_follow_each_other() -> None:
    """Six ROIs in batches of four and two: 6 s, and 4 s after that."""
    slots = foresee([claim(90.0) for _ in range(6)], 50.0, pace())
    np.testing.assert_allclose(slots, [(50.0, 56.0)] * 4 + [(56.0, 60.0)] * 2)


def test_a_pipeline_takes_the_next_batch_before_it_has_answered() -> None:
    """Where the entrance is free after a third of the time, batches overlap."""
    slots = foresee([claim(90.0) for _ in range(8)], 50.0, pace(entrance=1 / 3))
    np.testing.assert_allclose(slots, [(50.0, 56.0)] * 4 + [(52.0, 58.0)] * 4)


def test_what_will_not_be_read_delays_nobody() -> None:
    """One that cannot be met even alone is dropped when its turn comes."""
    slots = foresee([claim(51.0), claim(90.0)], 50.0, pace())
    assert slots == [Slot(50.0, 53.0), Slot(50.0, 53.0)]
