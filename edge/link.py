"""Measures the link to the cloud, and stops asking for a while when nobody answers.

It knows nothing of studies, budgets or scores: `edge.decide` chooses by its estimate.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PRIOR_ROUND_TRIP_S = 0.05
PRIOR_BYTES_PER_S = 12.5e6  # 100 Mbit/s
PRIOR_ROI_S = 0.05
FASTEST_BYTES_PER_S = 1.25e9  # 10 Gbit/s; above it the clock measures nothing
PESSIMISM = 0.75
MEMORY = 64


@dataclass(frozen=True)
class LinkEstimate:
    """What to expect of the link now.

    Attributes:
        available: False while it is off or the breaker is open; ``reason`` says which.
        round_trip_s: time for a small message there and back.
        bytes_per_s: throughput towards the cloud.
        queue_s: how long the cloud would let the next ROI wait, by its own word.
        roi_s: the cloud's time for one ROI, many sent together.
    """

    available: bool = True
    reason: str = ""
    round_trip_s: float = PRIOR_ROUND_TRIP_S
    bytes_per_s: float = PRIOR_BYTES_PER_S
    queue_s: float = 0.0
    roi_s: float = PRIOR_ROI_S

    def expected_s(self, rois: int, roi_bytes: int) -> float:
        """The time in which ``rois`` regions are sent, read and answered."""
        each_s = max(roi_bytes / self.bytes_per_s, self.roi_s)
        return self.round_trip_s + self.queue_s + rois * each_s

    def capacity(self, budget_s: float, roi_bytes: int) -> int:
        """How many ROIs can be answered within ``budget_s``.

        At least one while there is any budget: a link that is never asked is never measured
        again, and one bad hour would close it for ever.
        """
        if not self.available or budget_s <= 0:
            return 0
        each_s = self.expected_s(1, roi_bytes) - self.expected_s(0, roi_bytes)
        return max(1, int((budget_s - self.expected_s(0, roi_bytes)) / max(each_s, 1e-6)))


OFF = LinkEstimate(available=False, reason="off")


@dataclass(frozen=True)
class Arrival:
    """One verdict as it came in.

    ``sent_bytes`` are those of the stream up to and including its ROI, ``after_s`` the time
    since the stream was opened, ``queue_s`` and ``compute_s`` what the cloud says it spent.
    """

    sent_bytes: int
    after_s: float
    queue_s: float
    compute_s: float

    @property
    def transport_s(self) -> float:
        """What the way there and back took."""
        return max(0.0, self.after_s - self.queue_s - self.compute_s)


class Link:
    """Running estimate and breaker of one link; lives as long as its channel.

    After ``failures`` failed escalations in a row nothing is asked for ``cool_off_s``; then one
    escalation probes (half-open): its success closes the breaker, its failure opens it again.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        cool_off_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed, self._cool_off_s, self._clock = failures, cool_off_s, clock
        self._failed, self._closed_until, self._last_fault = 0, float("-inf"), ""
        self._queue_s, self._queue_seen = 0.0, clock()
        self._round_trips_s: deque[float] = deque(maxlen=MEMORY)
        self._bytes_per_s: deque[float] = deque(maxlen=MEMORY)
        self._roi_s: deque[float] = deque(maxlen=MEMORY)

    def estimate(self) -> LinkEstimate:
        """What to expect now: pessimistic quantiles of the last measurements, else priors."""
        now = self._clock()
        wait_s = self._closed_until - now
        reason = f"{self._last_fault}; not asked again for {wait_s:.0f} s" if wait_s > 0 else ""
        return LinkEstimate(
            available=wait_s <= 0,
            reason=reason,
            round_trip_s=_quantile(self._round_trips_s, PESSIMISM, PRIOR_ROUND_TRIP_S),
            bytes_per_s=_quantile(self._bytes_per_s, 1 - PESSIMISM, PRIOR_BYTES_PER_S),
            # a queue drains by a second a second until the cloud says otherwise
            queue_s=max(0.0, self._queue_s - (now - self._queue_seen)),
            roi_s=_quantile(self._roi_s, PESSIMISM, PRIOR_ROI_S),
        )

    def succeeded(self, arrivals: Sequence[Arrival]) -> None:
        """Takes in a stream that came to its end; closes the breaker."""
        self._failed = 0
        if not arrivals:
            return
        round_trip_s, bytes_per_s = self._fit(arrivals)
        self._round_trips_s.append(round_trip_s)
        self._bytes_per_s.append(bytes_per_s)
        reading_s = arrivals[-1].after_s - round_trip_s - arrivals[0].queue_s
        self._roi_s.append(max(0.0, reading_s) / len(arrivals))

    def failed(self, fault: str) -> None:
        """Counts an escalation that the cloud did not answer; opens the breaker at the limit."""
        self._failed += 1
        self._last_fault = fault
        if self._failed >= self._allowed:
            self._closed_until = self._clock() + self._cool_off_s

    def queue_reported(self, queue_s: float) -> None:
        """Takes in the cloud's own estimate of its queue."""
        self._queue_s, self._queue_seen = max(0.0, queue_s), self._clock()

    def _fit(self, arrivals: Sequence[Arrival]) -> tuple[float, float]:
        """Round trip and throughput: intercept and slope of transport time over bytes sent."""
        transport_s = np.array([a.transport_s for a in arrivals])
        sent = np.array([a.sent_bytes for a in arrivals], dtype=np.float64)
        slope = 1 / _quantile(self._bytes_per_s, 0.5, PRIOR_BYTES_PER_S)
        if len(arrivals) >= 3 and np.ptp(sent) > 0:
            slope = float(np.polyfit(sent, transport_s, 1)[0])
        slope = max(slope, 1 / FASTEST_BYTES_PER_S)
        return float(max(0.0, np.median(transport_s - slope * sent))), 1 / slope


def _quantile(values: deque[float], q: float, prior: float) -> float:
    return float(np.quantile(values, q)) if values else prior
