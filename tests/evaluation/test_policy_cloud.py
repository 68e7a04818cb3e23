"""The simulated cloud: cost, queue and batches."""

from __future__ import annotations

import math

import pytest

from evaluation.policy_cloud import SimulatedCloud

BATCHES = ((1, 0.03), (8, 0.10))  # t = 0.01 n + 0.02


def test_company_shares_a_batch() -> None:
    """Eight that come together are read at once, without a wait: the batch is full."""
    served = SimulatedCloud(BATCHES, most=8, max_wait_s=0.005).read([1.0] * 8, math.inf)
    assert [one.done_s for one in served if one] == pytest.approx([1.10] * 8)
    assert [one.compute_s for one in served if one] == pytest.approx([0.10] * 8)


def test_one_alone_waits_for_company_and_the_next_for_it() -> None:
    """5 ms, then 30 ms for one; what comes meanwhile begins when that is done."""
    cloud = SimulatedCloud(BATCHES, most=8, max_wait_s=0.005)
    first, second = cloud.read([1.0, 1.01], math.inf)
    assert first is not None
    assert second is not None
    assert first.done_s == pytest.approx(1.035)
    assert (second.queue_s, second.done_s) == (pytest.approx(0.025), pytest.approx(1.065))
    assert cloud.queue_s(1.05) == pytest.approx(0.015)


def test_what_would_be_late_or_never_came_is_not_read() -> None:
    """Its place is none, and it costs nothing."""
    cloud = SimulatedCloud(BATCHES, most=8, max_wait_s=0.0)
    assert cloud.read([1.0, math.inf], until_s=1.029) == [None, None]
    assert cloud.queue_s(1.0) == 0.0
