"""What was measured of one link and the cloud behind it: how fast each part of them is.

It knows nothing of breakers and threads: `edge.link` calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edge.arrival import Arrival, down_s, read_now, reading_s
from edge.estimate import PRIOR, PRIOR_SLOW, SLOW, LinkEstimate, Pace
from edge.evidence import Evidence

FASTEST_BYTES_PER_S = 1.25e9  # 10 Gbit/s; above it the clock measures nothing


class Measured:
    """Running quantiles of a link's round trip, throughput, and the cloud's queue and reading."""

    def __init__(self, clock: Callable[[], float], half_life_s: float) -> None:
        def evidence(middle: float, slow: float) -> Evidence:
            return Evidence((middle, slow), clock, half_life_s)

        self._clock = clock
        self._said_queue_s, self._said_at_s = 0.0, clock()
        self._round_trip_s = evidence(PRIOR.round_trip_s, PRIOR_SLOW.round_trip_s)
        self._up_s = evidence(1 / PRIOR.bytes_per_s, 1 / PRIOR_SLOW.bytes_per_s)  # a byte
        self._down_s = evidence(1 / PRIOR.down_bytes_per_s, 1 / PRIOR_SLOW.down_bytes_per_s)
        self._queue_s = evidence(PRIOR.queue_s, PRIOR_SLOW.queue_s)
        self._roi_s = evidence(PRIOR.roi_s, PRIOR_SLOW.roi_s)

    def pace(self, q: float) -> Pace:
        """What the next escalation does not exceed with a chance of ``q``, part by part."""
        return Pace(
            round_trip_s=self._round_trip_s.quantile(q),
            bytes_per_s=1 / self._up_s.quantile(q),
            down_bytes_per_s=1 / self._down_s.quantile(q),
            queue_s=max(self._said_now_s(), self._queue_s.quantile(q)),
            roi_s=self._roi_s.quantile(q),
        )

    @property
    def round_trip_s(self) -> float | None:
        """The median round trip; None before the first was measured."""
        return self._round_trip_s.quantile(0.5) if self._round_trip_s.measured else None

    def timed(self, round_trip_s: float) -> None:
        """Takes in one round trip."""
        self._round_trip_s.add(round_trip_s)

    def queue_said(self, queue_s: float) -> None:
        """Takes in the cloud's own estimate of its queue."""
        self._said_queue_s, self._said_at_s = max(0.0, queue_s), self._clock()

    def take(self, arrivals: Sequence[Arrival], heard_s: float) -> None:
        """Takes in the verdicts of one stream, and when the first sign of the cloud came."""
        transport_s = np.array([a.transport_s for a in arrivals])
        sent = np.array([a.sent_bytes for a in arrivals], dtype=np.float64)
        round_trip_s = min(heard_s, float(transport_s.min()))
        up_s = float(np.median((transport_s - round_trip_s) / sent))
        self._round_trip_s.add(round_trip_s)
        self._up_s.add(max(up_s, 1 / FASTEST_BYTES_PER_S))
        if read := read_now(arrivals):
            self._queue_s.add(read[0].queue_s)
            self._roi_s.add(reading_s(read) / len(read))
            if (each_s := down_s(read)) is not None:
                self._down_s.add(max(each_s, 1 / FASTEST_BYTES_PER_S))

    def slower_than(
        self, sent_bytes: int, after_s: float, heard_s: float | None, rois: int
    ) -> None:
        """Takes in that an answer to ``rois`` of ``sent_bytes`` takes longer than ``after_s``.

        A cloud that was heard soon, after ``heard_s``, lies behind a wire that works: unless so
        many bytes may well have taken half of the wait, they waited in the cloud, as if it had
        told of such a queue. Else the wire is as slow as that.
        """
        wait_s = after_s - self._round_trip_s.quantile(0.5)
        heard_soon = heard_s is not None and heard_s < after_s / 2
        if heard_soon and sent_bytes * self._up_s.quantile(SLOW) < wait_s / 2:
            idle = LinkEstimate.steady(replace(self.pace(0.5), queue_s=0.0))
            queued_s = after_s - idle.completion_s(rois, sent_bytes)
            _bound(self._queue_s, queued_s)
            self.queue_said(max(queued_s, self._said_now_s()))
        else:
            _bound(self._up_s, wait_s / sent_bytes)

    def _said_now_s(self) -> float:
        """A queue drains by a second a second until the cloud says otherwise."""
        return self._said_queue_s - (self._clock() - self._said_at_s)


def _bound(evidence: Evidence, value: float) -> None:
    """That it is longer than ``value`` tells nothing where that was expected."""
    if value > evidence.quantile(0.5):
        evidence.add_bound(value)
