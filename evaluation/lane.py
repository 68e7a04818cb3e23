"""One direction of a link: when bytes that enter now arrive at the other end.

A token bucket says when they have left, latency and jitter how long they are under way. It knows
nothing of sockets; time is what it is told.
"""

from __future__ import annotations

import random

BURST_BYTES = 16384
"""What goes out at once after a pause, whatever the rate."""


class TokenBucket:
    """The bandwidth of one direction, shared by all its connections."""

    def __init__(self, burst_bytes: int = BURST_BYTES) -> None:
        self._burst = float(burst_bytes)
        self._tokens = self._burst
        self._seen_s = float("-inf")

    def wait_s(self, count: int, kbit: float, now_s: float) -> float:
        """Seconds until ``count`` bytes that are offered now have left at ``kbit`` a second.

        They are taken from the bucket, which may go below nothing: who comes next waits longer.
        """
        if kbit <= 0:
            return 0.0
        bytes_per_s = kbit * 1000 / 8
        if self._seen_s > float("-inf"):
            self._tokens += max(0.0, now_s - self._seen_s) * bytes_per_s
        self._seen_s = now_s
        self._tokens = min(self._tokens, self._burst) - count
        return max(0.0, -self._tokens / bytes_per_s)


class Flight:
    """The way of one connection's bytes in one direction; none overtakes another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last_s = float("-inf")

    def due_s(self, left_s: float, latency_ms: float, jitter_ms: float) -> float:
        """When what left at ``left_s`` arrives, after half of the round trip ``latency_ms``."""
        way_s = (latency_ms / 2 + self._rng.uniform(0, jitter_ms)) / 1000
        self._last_s = max(self._last_s, left_s + way_s)
        return self._last_s
