"""What to expect of the link: the time of an escalation, in the middle and on the slow side.

What was measured of one link and the cloud behind it: how fast each part of them is.

It knows nothing of breakers and threads: `edge.link.link` calls it under its lock.

Measurements that grow old, and the quantiles of what is still worth believing.

A verdict as it came in, and what several of one stream tell of link and cloud.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from statistics import NormalDist

import numpy as np

ANSWER_BYTES = 512
"""One verdict with the packed mask of a nodule."""

NORMAL = NormalDist()
SLOW = 0.95
"""The quantile that `LinkEstimate.slow` holds."""

Stages = tuple[float, float, float]
"""Of sending, reading and answering."""


@dataclass(frozen=True)
class Pace:
    """How fast the link and the cloud behind it are.

    Attributes:
        round_trip_s: time for a small message there and back.
        bytes_per_s: throughput towards the cloud.
        down_bytes_per_s: throughput from it.
        queue_s: how long the next ROI waits in the cloud.
        roi_s: the cloud's time for one ROI, many sent together.
    """

    round_trip_s: float
    bytes_per_s: float
    down_bytes_per_s: float
    queue_s: float
    roi_s: float

    @property
    def busy(self) -> bool:
        """Whether asking first costs nothing: what comes waits longer than a round trip anyway."""
        return self.queue_s > self.round_trip_s

    def stages_s(self, rois: int, sent_bytes: float) -> Stages:
        """Sending, reading and answering ``rois`` regions, each for itself."""
        answers = rois * ANSWER_BYTES
        return sent_bytes / self.bytes_per_s, rois * self.roi_s, answers / self.down_bytes_per_s


# 100 Mbit/s with 10 Mbit/s not ruled out: what is believed before the first measurement.
PRIOR = Pace(0.05, 12.5e6, 12.5e6, 0.0, 0.05)
PRIOR_SLOW = Pace(0.25, 1.25e6, 1.25e6, 0.05, 0.15)


@dataclass(frozen=True)
class LinkEstimate:
    """What to expect of the link now.

    Attributes:
        available: False while it is off or the breaker is open; ``reason`` says which.
        middle: medians of what was measured.
        slow: the 95th percentiles of time, the 5th of throughput.
        off: there is no cloud at all.
        probing: nobody was reached for a while, and the next escalation finds out.
        silent_s: since the cloud was last heard of; None for never.
    """

    available: bool = True
    reason: str = ""
    middle: Pace = PRIOR
    slow: Pace = PRIOR_SLOW
    off: bool = False
    probing: bool = False
    silent_s: float | None = None

    @classmethod
    def steady(cls, pace: Pace) -> LinkEstimate:
        """A link that is never slower than ``pace``."""
        return cls(middle=pace, slow=pace)

    def expected_s(self, rois: int, roi_bytes: int) -> float:
        """The median time in which ``rois`` regions of equal size are sent, read and answered."""
        return self.completion_s(rois, rois * roi_bytes, 0.5)

    def completion_s(self, rois: int, sent_bytes: float, q: float = SLOW) -> float:
        """The time that a share ``q`` of escalations like this does not exceed.

        Sending, reading and answering overlap like a flow line of three machines: each region
        passes all three, and the slowest is passed by all. Around the medians the parts are
        taken to be normal and independent, so that their deviations add as squares.

        Args:
            rois: regions that are sent.
            sent_bytes: of all of them together.
            q: above 0 and below 1.
        """
        deviations = NORMAL.inv_cdf(q) / NORMAL.inv_cdf(SLOW)
        middle = self.middle.stages_s(rois, sent_bytes)
        slow = self.slow.stages_s(rois, sent_bytes)
        return max(self._quantile_s(middle, slow, s, deviations) for s in _slowest(rois))

    def _quantile_s(self, middle: Stages, slow: Stages, shares: Stages, deviations: float) -> float:
        """Sum of the medians, and of the deviations from them as squares."""
        m, s = self.middle, self.slow
        parts = [(m.round_trip_s, s.round_trip_s, 1.0), (m.queue_s, s.queue_s, 1.0)]
        parts += zip(middle, slow, shares, strict=True)
        spread_s = math.hypot(*((high - mid) * share for mid, high, share in parts))
        return max(0.0, sum(mid * share for mid, _, share in parts) + deviations * spread_s)


def _slowest(rois: int) -> list[Stages]:
    """How much of each stage counts, for each that may be the slowest: all of it, else one ROI."""
    one = 1 / max(rois, 1)
    return [(1.0, one, one), (one, 1.0, one), (one, one, 1.0)]


OFF = LinkEstimate(available=False, reason="off", off=True)

MEMORY = 64
FORGIVEN, FORGIVEN_LATEST = 5, 20
"""So many measurements outweigh one bound, and any number: one in 20 is what the slow tail is."""
HALF_LIFE_S = 600.0
PRIOR_WEIGHTS = (0.3, 0.2)  # of the median, so that little moves it, and of the slow tail


@dataclass(frozen=True)
class _Seen:
    """A measurement, or what one would at least have been: a bound."""

    at_s: float
    value: float
    is_bound: bool = False


class Evidence:
    """Running weighted quantiles of one quantity.

    A measurement weighs 1 when it is made and half as much every ``half_life_s``. What is
    believed before the first is ``prior``, the median and the 95th percentile; together they
    always weigh half a fresh measurement, so that what is not measured again is forgotten.

    Where an answer did not come only a bound is known. It counts like a measurement, but no more
    once `FORGIVEN` measurements for each bound have come since the last, `FORGIVEN_LATEST` at
    most: what happened once is soon forgiven, what goes on is believed.
    """

    def __init__(
        self,
        prior: tuple[float, float],
        clock: Callable[[], float],
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        self._prior, self._clock, self._half_life_s = prior, clock, half_life_s
        self._seen: deque[_Seen] = deque(maxlen=MEMORY)

    @property
    def measured(self) -> bool:
        """Whether anything was."""
        return any(not seen.is_bound for seen in self._seen)

    def add(self, value: float) -> None:
        """Takes in one measurement, made now."""
        self._seen.append(_Seen(self._clock(), value))

    def add_bound(self, value: float) -> None:
        """Takes in that it is more than ``value`` now."""
        self._seen.append(_Seen(self._clock(), value, is_bound=True))

    def quantile(self, q: float) -> float:
        """The smallest value that the next measurement does not exceed with a chance of ``q``.

        In expectation, as for the ``q (n + 1)``-th of ``n``; the median is that of the weights.
        """
        believed = self._believed()
        weights = self._weights(believed)
        values = np.array([*(seen.value for seen in believed), *self._prior])
        order = np.argsort(values)
        reached = np.cumsum(np.array([*weights, *PRIOR_WEIGHTS])[order])
        # rounding up to a whole measurement gives half of one already
        wanted = q * reached[-1] + (q - 0.5) * min(1.0, sum(weights))
        first = int(np.searchsorted(reached, min(wanted, reached[-1]) - 1e-9))
        return float(values[order[first]])

    def _believed(self) -> Sequence[_Seen]:
        """All but bounds that were outweighed since."""
        measured = [seen for seen in self._seen if not seen.is_bound]
        bounds = len(self._seen) - len(measured)
        since = len(list(takewhile(lambda seen: not seen.is_bound, reversed(self._seen))))
        return self._seen if since < min(FORGIVEN * bounds, FORGIVEN_LATEST) else measured

    def _weights(self, seen: Sequence[_Seen]) -> list[float]:
        now_s = self._clock()
        return [2.0 ** ((one.at_s - now_s) / self._half_life_s) for one in seen]


@dataclass(frozen=True)
class Arrival:
    """One verdict as it came in.

    ``sent_bytes`` are those of the stream up to and including its ROI, ``received_bytes`` those
    of the answers up to and including this one, ``after_s`` the time since the stream's regions
    could be sent, ``queue_s`` and ``compute_s`` what the cloud says it spent.
    """

    sent_bytes: int
    after_s: float
    queue_s: float
    compute_s: float
    received_bytes: int = 0

    @property
    def transport_s(self) -> float:
        """What the way there and back took."""
        return max(0.0, self.after_s - self.queue_s - self.compute_s)


def read_now(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Those that the cloud read; one that it remembered tells nothing of queue and reading."""
    return [arrival for arrival in arrivals if arrival.compute_s > 0.0]


def reading_s(arrivals: Sequence[Arrival]) -> float:
    """The cloud's time for all of them: of their batches, or from the first to the last.

    Regions of one batch tell the same time. Between batches the cloud may serve others.
    """
    batches_s = sum({a.compute_s for a in arrivals})
    return max(batches_s, max(a.queue_s + a.compute_s for a in arrivals) - arrivals[0].queue_s)


def down_s(arrivals: Sequence[Arrival]) -> float | None:
    """Seconds a byte of the longest run of answers that left the cloud together; None for none."""
    runs = [list(run) for _, run in groupby(arrivals, key=lambda a: a.compute_s)]
    run = max(runs, key=len)
    received = run[-1].received_bytes - run[0].received_bytes
    return (run[-1].after_s - run[0].after_s) / received if received > 0 else None


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
