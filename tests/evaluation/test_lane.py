"""Bandwidth and delay of one direction, in seconds that the test makes."""

from __future__ import annotations

import random

import pytest

from evaluation.lane import BURST_BYTES, Flight, TokenBucket


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    """At 800 kbit/s, 100,000 bytes a second; what waits is made up by whoever comes next."""
    bucket = TokenBucket()
    assert bucket.wait_s(BURST_BYTES, 800, 0.0) == 0.0
    assert bucket.wait_s(50_000, 800, 0.0) == pytest.approx(0.5)
    assert bucket.wait_s(50_000, 800, 0.25) == pytest.approx(0.75)


def test_a_pause_fills_the_bucket_and_no_more() -> None:
    """After an hour the burst is there again, not an hour's bytes."""
    bucket = TokenBucket()
    bucket.wait_s(BURST_BYTES, 800, 0.0)
    assert bucket.wait_s(BURST_BYTES + 10_000, 800, 3600.0) == pytest.approx(0.1)


def test_the_rate_may_change() -> None:
    """What is owed is paid at the new rate; 0 is no limit."""
    bucket = TokenBucket()
    bucket.wait_s(BURST_BYTES, 800, 0.0)
    assert bucket.wait_s(1000, 8, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(10**9, 0, 0.0) == 0.0


def test_latency_is_a_round_trip() -> None:
    """Each way takes half of it."""
    assert Flight(random.Random(0)).due_s(10.0, 600.0, 0.0) == pytest.approx(10.3)


def test_jitter_delays_and_nothing_overtakes() -> None:
    """Within the jitter's bounds, in order, and the same for the same seed."""
    ways = [Flight(random.Random(3)), Flight(random.Random(3))]
    left = [i * 0.001 for i in range(200)]
    one, two = ([way.due_s(at, 20.0, 30.0) for at in left] for way in ways)
    assert one == two
    assert one == sorted(one)
    took = [due - at for at, due in zip(left, one, strict=True)]
    assert min(took) >= 0.010 - 1e-9
    assert max(took) <= 0.040 + 1e-9
    assert len({round(way, 6) for way in took}) > 10
