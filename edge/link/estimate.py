"""Predict the time of an escalation from what earlier ones measured.

    Arrival (one verdict) -> Measurements (of one link) -> Pace (median, slow) -> LinkEstimate

It knows nothing of breakers and threads: `edge.link.link` calls it under its lock.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from statistics import NormalDist

import numpy as np

ANSWER_BYTES = 512
"""Bytes of one verdict with the packed mask of a nodule."""

NORMAL = NormalDist()
SLOW = 0.95
"""The quantile that `LinkEstimate.slow` holds."""

Stages = tuple[float, float, float]
"""Seconds (or shares) of sending, reading and answering."""


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
        """Whether holding the ROIs for a round trip costs nothing: the queue is longer anyway."""
        return self.queue_s > self.round_trip_s

    def stages_s(self, rois: int, sent_bytes: float) -> Stages:
        """Return the time of sending, reading and answering ``rois`` ROIs, each by itself."""
        answers = rois * ANSWER_BYTES
        return sent_bytes / self.bytes_per_s, rois * self.roi_s, answers / self.down_bytes_per_s


# Assumed before the first measurement: 100 Mbit/s; on the slow side 10 Mbit/s.
PRIOR = Pace(0.05, 12.5e6, 12.5e6, 0.0, 0.05)
PRIOR_SLOW = Pace(0.25, 1.25e6, 1.25e6, 0.05, 0.15)


@dataclass(frozen=True)
class LinkEstimate:
    """What to expect of the link now.

    Attributes:
        available: False while no cloud is configured, it is down, or the breaker is open.
        reason: why it is not available.
        middle: medians of the measurements.
        slow: the 95th percentiles of time, the 5th of throughput.
        off: no cloud is configured.
        probing: the breaker is half-open: the next escalation is the probe.
        silent_s: seconds since the last response of the cloud; None for never.
    """

    available: bool = True
    reason: str = ""
    middle: Pace = PRIOR
    slow: Pace = PRIOR_SLOW
    off: bool = False
    probing: bool = False
    silent_s: float | None = None

    @classmethod
    def steady(cls, pace: Pace) -> "LinkEstimate":
        """Build the estimate of a link that is never slower than ``pace``."""
        return cls(middle=pace, slow=pace)

    @property
    def why_not(self) -> str:
        """Why the link is not available, and for how long; empty if it is."""
        return self.reason if self.off or not self.reason else f"{self.reason}{self.silence}"

    @property
    def silence(self) -> str:
        """For how long the cloud has not answered, to be appended; empty below 10 s."""
        if self.silent_s is None:
            return "; no answer yet since this program started"
        return "" if self.silent_s < 10 else f"; its last answer came {_span(self.silent_s)} ago"

    def completion_s(self, rois: int, sent_bytes: float, q: float = SLOW) -> float:
        """Return the time that a share ``q`` of such escalations does not exceed.

        Sending, reading and answering overlap like a flow line of three machines. Around the
        medians, the parts are assumed to be normal and independent. ``sent_bytes`` are those of all
        ROIs together.
        """
        # ``slow`` is the 95th percentile: scale its distance from the median to the quantile q.
        deviations = NORMAL.inv_cdf(q) / NORMAL.inv_cdf(SLOW)
        middle = self.middle.stages_s(rois, sent_bytes)
        slow = self.slow.stages_s(rois, sent_bytes)
        # In a flow line, all ROIs pass the slowest stage one after the other; the other two stages
        # add the time of one ROI each. Which stage is the slowest depends on q: take the maximum.
        one = 1 / max(rois, 1)
        shares = (1.0, one, one), (one, 1.0, one), (one, one, 1.0)
        return max(self._quantile_s(middle, slow, each, deviations) for each in shares)

    def _quantile_s(self, middle: Stages, slow: Stages, shares: Stages, deviations: float) -> float:
        """Add the medians, and the deviations from them as squares (root of the sum)."""
        m, s = self.middle, self.slow
        parts = [(m.round_trip_s, s.round_trip_s, 1.0), (m.queue_s, s.queue_s, 1.0)]
        parts += zip(middle, slow, shares, strict=True)
        spread_s = math.hypot(*((high - mid) * share for mid, high, share in parts))
        return max(0.0, sum(mid * share for mid, _, share in parts) + deviations * spread_s)


def _span(seconds: float) -> str:
    """Format a span of time in its largest fitting unit."""
    for unit, length_s in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


OFF = LinkEstimate(available=False, reason="no second reader is configured", off=True)

BOUND_EXPIRES, BOUND_EXPIRES_AT_LATEST = 5, 20
"""Measurements after which one bound is dropped, and any number of bounds. 20, because one
measurement in 20 lies beyond the 95th percentile anyway."""
HALF_LIFE_S = 600.0
PRIOR_WEIGHTS = (0.3, 0.2)  # of its median, which little should move, and of its slow value


@dataclass(frozen=True)
class _Seen:
    """A measurement, or a lower bound of one that was not completed."""

    at_s: float
    value: float
    is_bound: bool = False


class DecayingQuantiles:
    """Running weighted quantiles of one quantity.

    A measurement weighs 1 when it is made, and half as much after every `HALF_LIFE_S`. The
    ``prior``, a median and a 95th percentile, together always weigh half a fresh measurement, so
    that the quantiles return to it when nothing is measured.

    Where an answer did not come, only a lower bound is known. It counts like a measurement until
    `BOUND_EXPIRES` measurements for each bound have come since the last bound, at most
    `BOUND_EXPIRES_AT_LATEST`: a single outage is soon forgotten, a lasting one is not.
    """

    def __init__(self, prior: tuple[float, float], clock: Callable[[], float]) -> None:
        self._prior, self._clock = prior, clock
        self._seen: deque[_Seen] = deque(maxlen=64)

    @property
    def measured(self) -> bool:
        """Whether there is any measurement."""
        return any(not seen.is_bound for seen in self._seen)

    def add(self, value: float) -> None:
        """Add one measurement, made now."""
        self._seen.append(_Seen(self._clock(), value))

    def add_bound(self, value: float) -> None:
        """Add that the quantity is more than ``value`` now; below the median that is not new."""
        if value > self.quantile(0.5):
            self._seen.append(_Seen(self._clock(), value, is_bound=True))

    def quantile(self, q: float) -> float:
        """Return the value that the next measurement does not exceed with probability ``q``.

        In expectation, as the ``q (n + 1)``-th of ``n`` does; at 0.5 it is the weighted median.
        """
        # Sort the measurements and the two values of the prior; accumulate their weights.
        current, now_s = self._current(), self._clock()
        weights = [2.0 ** ((seen.at_s - now_s) / HALF_LIFE_S) for seen in current]
        values = np.array([*(seen.value for seen in current), *self._prior])
        order = np.argsort(values)
        reached = np.cumsum(np.array([*weights, *PRIOR_WEIGHTS])[order])
        # The next measurement adds a weight of its own: (q - 0.5) of a fresh one, for rounding up
        # to a whole measurement already gives the other half. The first value whose accumulated
        # weight reaches that is the quantile.
        wanted = q * reached[-1] + (q - 0.5) * min(1.0, sum(weights))
        first = int(np.searchsorted(reached, min(wanted, reached[-1]) - 1e-9))
        return float(values[order[first]])

    def _current(self) -> Sequence[_Seen]:
        """Return everything but the bounds that have expired."""
        measured = [seen for seen in self._seen if not seen.is_bound]
        bounds = len(self._seen) - len(measured)
        since = len(list(takewhile(lambda seen: not seen.is_bound, reversed(self._seen))))
        expires = min(BOUND_EXPIRES * bounds, BOUND_EXPIRES_AT_LATEST)
        return self._seen if since < expires else measured


@dataclass(frozen=True)
class Arrival:
    """One verdict and its times.

    ``sent_bytes`` are those of the stream up to and including its ROI, ``received_bytes`` those
    of the answers up to and including this one, ``after_s`` the time since the stream's ROIs
    could be sent, ``queue_s`` and ``compute_s`` what the cloud says it spent.
    """

    sent_bytes: int
    after_s: float
    queue_s: float
    compute_s: float
    received_bytes: int = 0

    @property
    def transport_s(self) -> float:
        """Seconds that the ROI and its answer spent on the link."""
        return max(0.0, self.after_s - self.queue_s - self.compute_s)


def computing_s(arrivals: Sequence[Arrival]) -> float:
    """Return the cloud's time for all of them.

    It is the sum over their batches, or the time from the first to the last if that is more:
    between batches the cloud may serve other sites. ROIs of one batch report the same time.
    """
    batches_s = sum({a.compute_s for a in arrivals})
    return max(batches_s, max(a.queue_s + a.compute_s for a in arrivals) - arrivals[0].queue_s)


def down_s(arrivals: Sequence[Arrival]) -> float | None:
    """Return the seconds a byte of the answers took; None where too few came together.

    Answers of one batch leave the cloud together, so that the time between them is transport alone.
    """
    runs = [list(run) for _, run in groupby(arrivals, key=lambda a: a.compute_s)]
    run = max(runs, key=len)
    received = run[-1].received_bytes - run[0].received_bytes
    return (run[-1].after_s - run[0].after_s) / received if received > 0 else None


FASTEST_BYTES_PER_S = 1.25e9  # 10 Gbit/s; more cannot be measured with this clock


class Measurements:
    """Running quantiles of a link's round trip, throughput, and the cloud's queue and reading."""

    def __init__(self, clock: Callable[[], float]) -> None:
        def quantiles(middle: float, slow: float) -> DecayingQuantiles:
            return DecayingQuantiles((middle, slow), clock)

        self._clock = clock
        self._reported_queue_s, self._reported_at_s = 0.0, clock()
        self._round_trip_s = quantiles(PRIOR.round_trip_s, PRIOR_SLOW.round_trip_s)
        self._up_s = quantiles(1 / PRIOR.bytes_per_s, 1 / PRIOR_SLOW.bytes_per_s)  # a byte
        self._down_s = quantiles(1 / PRIOR.down_bytes_per_s, 1 / PRIOR_SLOW.down_bytes_per_s)
        self._queue_s = quantiles(PRIOR.queue_s, PRIOR_SLOW.queue_s)
        self._roi_s = quantiles(PRIOR.roi_s, PRIOR_SLOW.roi_s)

    def pace(self, q: float) -> Pace:
        """Return the quantile ``q`` of each part."""
        return Pace(
            round_trip_s=self._round_trip_s.quantile(q),
            bytes_per_s=1 / self._up_s.quantile(q),
            down_bytes_per_s=1 / self._down_s.quantile(q),
            queue_s=max(self._reported_now_s(), self._queue_s.quantile(q)),
            roi_s=self._roi_s.quantile(q),
        )

    @property
    def round_trip_s(self) -> float | None:
        """The median round trip; None before the first measurement."""
        return self._round_trip_s.quantile(0.5) if self._round_trip_s.measured else None

    def add_round_trip(self, round_trip_s: float) -> None:
        """Add one round trip."""
        self._round_trip_s.add(round_trip_s)

    def queue_reported(self, queue_s: float) -> None:
        """Add the cloud's own estimate of its queue."""
        self._reported_queue_s, self._reported_at_s = max(0.0, queue_s), self._clock()

    def add_stream(self, arrivals: Sequence[Arrival], response_s: float) -> None:
        """Add the verdicts of one stream, and the time to its first response."""
        # The round trip is the smallest transport time seen. What the others took longer is the
        # upload: the median over the verdicts of (transport - round trip) / bytes sent so far.
        transport_s = np.array([a.transport_s for a in arrivals])
        sent = np.array([a.sent_bytes for a in arrivals], dtype=np.float64)
        round_trip_s = min(response_s, float(transport_s.min()))
        up_s = float(np.median((transport_s - round_trip_s) / sent))
        self._round_trip_s.add(round_trip_s)
        self._up_s.add(max(up_s, 1 / FASTEST_BYTES_PER_S))
        # The first computed verdict shows the queue; all of them the time for one ROI; those of one
        # batch the speed of the way back. A cached one says nothing of queue and computing.
        if read := [arrival for arrival in arrivals if arrival.compute_s > 0.0]:
            self._queue_s.add(read[0].queue_s)
            self._roi_s.add(computing_s(read) / len(read))
            if (each_s := down_s(read)) is not None:
                self._down_s.add(max(each_s, 1 / FASTEST_BYTES_PER_S))

    def add_bound(
        self, sent_bytes: int, after_s: float, response_s: float | None, rois: int
    ) -> None:
        """Add that an answer to ``rois`` of ``sent_bytes`` takes longer than ``after_s``."""
        wait_s = after_s - self._round_trip_s.quantile(0.5)
        responded_soon = response_s is not None and response_s < after_s / 2
        # Which part was slow? A cloud that responded soon is behind a link that works. Unless the
        # upload may well have taken half of the wait, the ROIs waited in the cloud's queue: it is
        # at least as long as what an idle cloud would not have needed.
        if responded_soon and sent_bytes * self._up_s.quantile(SLOW) < wait_s / 2:
            idle = LinkEstimate.steady(replace(self.pace(0.5), queue_s=0.0))
            queued_s = after_s - idle.completion_s(rois, sent_bytes)
            self._queue_s.add_bound(queued_s)
            self.queue_reported(max(queued_s, self._reported_now_s()))
        # Otherwise the upload was slow.
        else:
            self._up_s.add_bound(wait_s / sent_bytes)

    def _reported_now_s(self) -> float:
        """Return the reported queue, which drains by one second a second."""
        return self._reported_queue_s - (self._clock() - self._reported_at_s)
