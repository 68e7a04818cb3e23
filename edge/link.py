"""Measures the link to the cloud, and stops asking for a while when nobody answers.

It knows nothing of studies, budgets or scores: `edge.decide` chooses by its estimate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from edge.breaker import Breaker
from edge.estimate import PRIOR, PRIOR_SLOW, SLOW, LinkEstimate, Pace
from edge.evidence import HALF_LIFE_S, Evidence

FASTEST_BYTES_PER_S = 1.25e9  # 10 Gbit/s; above it the clock measures nothing

CONNECT_S = 3.0
"""What connecting may take; so long one waits for a sign of a cloud not heard of for a while."""

UNHEARD = "the cloud has not answered yet"

HEARD_LATELY_S = 60.0
LEAST_PATIENCE_S = 1.0
ROUND_TRIPS = 4
"""So many of the slow ones pass before silence counts as one."""


@dataclass(frozen=True)
class Arrival:
    """One verdict as it came in.

    ``sent_bytes`` are those of the stream up to and including its ROI, ``received_bytes`` those
    of the answers up to and including this one, ``after_s`` the time since the stream was
    opened, ``queue_s`` and ``compute_s`` what the cloud says it spent.
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


class Link:
    """Running estimate and breaker of one link; lives as long as its channel.

    Whoever was let in by `enter` tells how it ended: `succeeded`, `missed`, `failed` or `left`.
    Who watches it tells `awaited`, `found`, `lost` and `unwatched`. Several threads may use it.

    Attributes:
        doubted: is set when an escalation was not answered; for who watches.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        cool_off_s: float = 30.0,
        half_life_s: float = HALF_LIFE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._breaker = Breaker(clock, failures, cool_off_s)
        self._said_queue_s, self._said_at_s = 0.0, clock()
        self._heard_at_s: float | None = None
        self._due_at_s: float | None = None
        self._known = threading.Event()
        self._timed_at_s, self._talking, self._lost = float("-inf"), False, ""
        self.doubted = threading.Event()

        def evidence(middle: float, slow: float) -> Evidence:
            return Evidence((middle, slow), clock, half_life_s)

        self._round_trip_s = evidence(PRIOR.round_trip_s, PRIOR_SLOW.round_trip_s)
        self._up_s = evidence(1 / PRIOR.bytes_per_s, 1 / PRIOR_SLOW.bytes_per_s)  # a byte
        self._down_s = evidence(1 / PRIOR.down_bytes_per_s, 1 / PRIOR_SLOW.down_bytes_per_s)
        self._queue_s = evidence(PRIOR.queue_s, PRIOR_SLOW.queue_s)
        self._roi_s = evidence(PRIOR.roi_s, PRIOR_SLOW.roi_s)

    def estimate(self) -> LinkEstimate:
        """What to expect now: quantiles of what was measured, the old counting for less."""
        with self._lock:
            reason, heard_at_s = self._why_gone() or self._breaker.why_shut, self._heard_at_s
            return LinkEstimate(
                available=not reason,
                reason=reason,
                middle=self._pace(0.5),
                slow=self._pace(SLOW),
                probing=self._breaker.half_open,
                silent_s=None if heard_at_s is None else self._clock() - heard_at_s,
            )

    def enter(self) -> bool:
        """Whether one may ask now."""
        with self._lock:
            return not self._why_gone() and self._breaker.enter()

    def sign(self) -> None:
        """The cloud was heard in an escalation under way."""
        with self._lock:
            self._talking, self._lost, self._heard_at_s = True, "", self._clock()

    @property
    def talking(self) -> bool:
        """Whether an escalation is under way in which the cloud was heard."""
        return self._talking

    def patience_s(self) -> float:
        """For how long nothing may be heard of a cloud that is there."""
        with self._lock:
            if self._heard_at_s is None or self._clock() - self._heard_at_s > HEARD_LATELY_S:
                return CONNECT_S
            return max(LEAST_PATIENCE_S, ROUND_TRIPS * self._round_trip_s.quantile(SLOW))

    def awaited(self, within_s: float) -> None:
        """The cloud is being looked for: until it is found nobody may ask it.

        ``within_s`` is how long `settle` may wait for that.
        """
        with self._lock:
            self._due_at_s = self._clock() + within_s

    def unwatched(self) -> None:
        """Nobody looks for the cloud any more: one that was not found may be asked all the same."""
        with self._lock:
            self._due_at_s = None
            self._known.set()

    def settle(self) -> None:
        """Waits until a cloud that is being looked for is found or lost, or should have been."""
        if self._due_at_s is not None:
            self._known.wait(max(0.0, self._due_at_s - self._clock()))

    def found(self, round_trip_s: float | None) -> None:
        """The cloud is there; ``round_trip_s`` is None where connecting was a part of it.

        One round trip a minute is taken in: what escalations measure must not be forgotten for it.
        """
        with self._lock:
            self._lost, self._heard_at_s = "", self._clock()
            self._known.set()
            if round_trip_s is not None and self._clock() - self._timed_at_s >= HEARD_LATELY_S:
                self._timed_at_s = self._clock()
                self._round_trip_s.add(round_trip_s)

    def lost(self, fault: str) -> None:
        """The cloud is not there: nobody may ask until it is found, or has answered.

        An escalation in which the cloud was heard knows better: what it sends may keep all else
        out of a narrow link.
        """
        with self._lock:
            self._known.set()
            if not self._talking:
                self._lost = fault

    def succeeded(self, arrivals: Sequence[Arrival], heard_s: float = 0.0) -> None:
        """Takes in a stream that brought answers.

        Args:
            arrivals: its verdicts in the order in which they came; none tell nothing of speed.
            heard_s: from opening the stream to the first sign of the cloud: one round trip.
        """
        with self._ended():
            self._breaker.succeeded()
            self._lost, self._heard_at_s = "", self._clock()
            if arrivals:
                self._measure(arrivals, heard_s)

    def missed(self, sent_bytes: int, after_s: float) -> None:
        """Takes in that ``sent_bytes`` were not answered ``after_s`` later, at the deadline.

        It was slower than that: the measurement is entered as if the answer had come just then.
        """
        with self._ended(doubtful=True):
            self._breaker.failed(f"nothing was answered within {after_s:.1f} s")
            self.slower_than(sent_bytes, after_s)

    def slower_than(self, sent_bytes: int, after_s: float) -> None:
        """Takes in that an answer to ``sent_bytes`` takes longer than ``after_s``."""
        with self._lock:
            each_s = (after_s - self._round_trip_s.quantile(0.5)) / sent_bytes
            if each_s > self._up_s.quantile(0.5):
                self._up_s.add(each_s)

    def failed(self, fault: str) -> None:
        """Counts an escalation that ended in a fault of the link."""
        with self._ended(doubtful=True):
            self._breaker.failed(fault)

    def left(self) -> None:
        """An escalation ended that tells nothing of the link."""
        with self._ended():
            self._breaker.left()

    def queue_reported(self, queue_s: float) -> None:
        """Takes in the cloud's own estimate of its queue."""
        with self._lock:
            self._said_queue_s, self._said_at_s = max(0.0, queue_s), self._clock()
            self._heard_at_s = self._clock()

    def _why_gone(self) -> str:
        unheard = self._heard_at_s is None and self._due_at_s is not None
        return self._lost or (UNHEARD if unheard else "")

    @contextmanager
    def _ended(self, *, doubtful: bool = False) -> Iterator[None]:
        """One that was let in tells how it went."""
        with self._lock:
            self._talking = False
            yield
        if doubtful:
            self.doubted.set()

    def _pace(self, q: float) -> Pace:
        # a queue drains by a second a second until the cloud says otherwise
        said_s = self._said_queue_s - (self._clock() - self._said_at_s)
        return Pace(
            round_trip_s=self._round_trip_s.quantile(q),
            bytes_per_s=1 / self._up_s.quantile(q),
            down_bytes_per_s=1 / self._down_s.quantile(q),
            queue_s=max(said_s, self._queue_s.quantile(q)),
            roi_s=self._roi_s.quantile(q),
        )

    def _measure(self, arrivals: Sequence[Arrival], heard_s: float) -> None:
        transport_s = np.array([a.transport_s for a in arrivals])
        sent = np.array([a.sent_bytes for a in arrivals], dtype=np.float64)
        round_trip_s = min(heard_s, float(transport_s.min()))
        up_s = float(np.median((transport_s - round_trip_s) / sent))
        self._round_trip_s.add(round_trip_s)
        self._up_s.add(max(up_s, 1 / FASTEST_BYTES_PER_S))
        self._queue_s.add(arrivals[0].queue_s)
        self._roi_s.add(_reading_s(arrivals) / len(arrivals))
        if (down_s := _down_s(arrivals)) is not None:
            self._down_s.add(max(down_s, 1 / FASTEST_BYTES_PER_S))


def _reading_s(arrivals: Sequence[Arrival]) -> float:
    """The cloud's time for all of them: of their batches, or from the first to the last.

    Regions of one batch tell the same time. Between batches the cloud may serve others.
    """
    batches_s = sum({a.compute_s for a in arrivals})
    return max(batches_s, max(a.queue_s + a.compute_s for a in arrivals) - arrivals[0].queue_s)


def _down_s(arrivals: Sequence[Arrival]) -> float | None:
    """Seconds a byte of the longest run of answers that left the cloud together; None for none."""
    runs = [list(run) for _, run in groupby(arrivals, key=lambda a: a.compute_s)]
    run = max(runs, key=len)
    received = run[-1].received_bytes - run[0].received_bytes
    return (run[-1].after_s - run[0].after_s) / received if received > 0 else None
