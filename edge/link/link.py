"""Measure the link to the cloud, and pause requests while the cloud does not answer.

It knows nothing of studies, budgets or scores: `edge.decide` chooses by its estimate.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from edge.link.estimate import SLOW, Arrival, LinkEstimate, Measurements

CONNECT_S = 3.0
"""Time limit for connecting; enough for a satellite link."""

RECENT_S = 60.0
"""A cloud that responded within this time is expected to respond soon."""
TIMEOUT_ROUND_TRIPS = 4
"""The response timeout in slow round trips (95th percentile)."""

COOL_OFF_S = 30.0

NO_RESPONSE_YET = "the cloud is not yet known to be reachable"


class Breaker:
    """A circuit breaker: closed while escalations are answered, open after several failures.

    A failure is a fault of the link, or a deadline that passed without any answer. After
    ``failures`` in a row the breaker opens and rejects every escalation for `COOL_OFF_S`. Then
    it is half-open: one escalation enters as the probe, and the others are rejected until it has
    ended. Its success closes the breaker, its failure opens it again. If it shows neither, the
    next escalation becomes the probe.
    """

    def __init__(self, clock: Callable[[], float], failures: int) -> None:
        self._clock, self._allowed = clock, failures
        self._failed, self._last_fault, self._probe_running = 0, "", False
        self._open_until_s = float("-inf")

    @property
    def half_open(self) -> bool:
        """Whether the next escalation would be the probe, or one is running."""
        return self._failed >= self._allowed and self._clock() >= self._open_until_s

    @property
    def reason(self) -> str:
        """Why escalations are rejected now; empty if they are admitted."""
        if (wait_s := self._open_until_s - self._clock()) > 0:
            return f"{self._last_fault}; next attempt in {wait_s:.0f} s"
        if self._probe_running:
            return f"{self._last_fault}; another study is testing whether it is back"
        return ""

    def enter(self) -> bool:
        """Admit one escalation, as the probe if half-open; it must report how it ended."""
        if self.reason:
            return False
        self._probe_running = self.half_open
        return True

    def succeeded(self) -> None:
        """Note that the escalation was answered."""
        self._failed, self._probe_running, self._open_until_s = 0, False, float("-inf")

    def failed(self, fault: str) -> None:
        """Note that the escalation was not answered, because of ``fault``."""
        self._failed, self._last_fault, self._probe_running = self._failed + 1, fault, False
        if self._failed >= self._allowed:
            self._open_until_s = self._clock() + COOL_OFF_S

    def inconclusive(self) -> None:
        """Note that the escalation does not show whether the cloud is reachable."""
        self._probe_running = False


@dataclass(frozen=True)
class Traffic:
    """Bytes of messages, and seconds to encode and decode them."""

    sent_bytes: int = 0
    received_bytes: int = 0
    coding_s: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class Link:
    """Running estimate and breaker of one link; lives as long as its channel.

    An escalation that `enter` admits reports how it ended: `succeeded`, `missed`, `failed` or
    `inconclusive`. A health monitor reports `monitor_started`, `up`, `down` and
    `monitor_stopped`. Several threads may use it.

    Attributes:
        traffic: what all escalations sent and received.
        receiving: whether a running escalation has received something from the cloud.
        suspect: is set when an escalation was not answered; the health monitor waits for it.
    """

    def __init__(self, *, failures: int = 3, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._breaker = Breaker(clock, failures)
        self._measured = Measurements(clock)
        self._response_at_s: float | None = None
        self._grace_until_s: float | None = None
        self._known = threading.Event()
        self._timed_at_s, self.receiving, self._down = float("-inf"), False, ""
        self.suspect = threading.Event()
        self.traffic = Traffic()

    def carried(self, traffic: Traffic) -> None:
        """Add messages that went over the link."""
        with self._lock:
            self.traffic += traffic

    def estimate(self) -> LinkEstimate:
        """Return what to expect now: quantiles of the measurements, recent ones counting most."""
        with self._lock:
            # two reasons to reject: the health monitor says down, or the breaker is open
            reason, at_s = self._why_down() or self._breaker.reason, self._response_at_s
            return LinkEstimate(
                available=not reason,
                reason=reason,
                middle=self._measured.pace(0.5),
                slow=self._measured.pace(SLOW),
                probing=self._breaker.half_open,
                silent_s=None if at_s is None else self._clock() - at_s,
            )

    def enter(self) -> bool:
        """Return whether an escalation may start now."""
        with self._lock:
            return not self._why_down() and self._breaker.enter()

    @property
    def round_trip_s(self) -> float | None:
        """The median of the measured round trips; None before the first."""
        with self._lock:
            return self._measured.round_trip_s

    def responded(self) -> None:
        """Note that the cloud sent something in a running escalation."""
        with self._lock:
            self.receiving, self._down, self._response_at_s = True, "", self._clock()

    def response_timeout_s(self) -> float:
        """Return how long a reachable cloud may take for its first response."""
        with self._lock:
            # The first exchange in a while may have to connect. After a recent one, a few slow
            # round trips are enough.
            at_s = self._response_at_s
            if at_s is None or self._clock() - at_s > RECENT_S:
                return CONNECT_S
            return max(1.0, TIMEOUT_ROUND_TRIPS * self._measured.pace(SLOW).round_trip_s)

    def monitor_started(self, grace_s: float) -> None:
        """Reject escalations until the cloud responds; studies wait ``grace_s`` for that."""
        with self._lock:
            self._grace_until_s = self._clock() + grace_s

    def monitor_stopped(self) -> None:
        """Admit escalations again even if the cloud never responded."""
        with self._lock:
            self._grace_until_s = None
            self._known.set()

    def wait_until_known(self) -> None:
        """Wait for the first health check, but not beyond the startup grace period."""
        grace_until_s = self._grace_until_s  # once: `monitor_stopped` may come between
        if grace_until_s is not None:
            self._known.wait(max(0.0, grace_until_s - self._clock()))

    def up(self, round_trip_s: float | None) -> None:
        """Note a health check that was answered; ``round_trip_s`` is None if it had to connect.

        Only one round trip a minute is recorded: otherwise the many checks would displace what
        escalations measure.
        """
        with self._lock:
            self._down, self._response_at_s = "", self._clock()
            self._known.set()
            if round_trip_s is not None and self._clock() - self._timed_at_s >= RECENT_S:
                self._timed_at_s = self._clock()
                self._measured.add_round_trip(round_trip_s)

    def down(self, fault: str) -> None:
        """Note a failed health check: reject escalations until the cloud responds again.

        Ignore it while an escalation is receiving answers: its upload may be saturating the link.
        """
        with self._lock:
            self._known.set()
            if not self.receiving:
                self._down = fault

    def succeeded(self, arrivals: Sequence[Arrival], response_s: float = 0.0) -> None:
        """Record a stream that brought answers.

        ``arrivals`` are in the order in which they came; ``response_s`` runs from opening the
        stream to the first response, which is one round trip.
        """
        with self._ended():
            self._breaker.succeeded()
            self._down, self._response_at_s = "", self._clock()
            if arrivals:
                self._measured.add_stream(arrivals, response_s)

    def missed(
        self,
        sent_bytes: int,
        after_s: float,
        response_s: float | None = None,
        *,
        counts: bool = True,
    ) -> None:
        """Record that ``sent_bytes`` were not answered ``after_s`` later, at the deadline.

        ``response_s`` is the time to the first response, None for none. Where it does not count
        for the breaker, it only bounds the speed.
        """
        with self._ended(suspect=True):
            if counts:
                self._breaker.failed(f"no answer within {after_s:.1f} s")
            else:
                self._breaker.inconclusive()
            self.slower_than(sent_bytes, after_s, response_s)

    def slower_than(
        self, sent_bytes: int, after_s: float, response_s: float | None = None, rois: int = 1
    ) -> None:
        """Record that an answer to ``rois`` of ``sent_bytes`` takes longer than ``after_s``."""
        with self._lock:
            self._measured.add_bound(sent_bytes, after_s, response_s, rois)

    def failed(self, fault: str) -> None:
        """Record an escalation that ended in a fault of the link."""
        with self._ended(suspect=True):
            self._breaker.failed(fault)

    def inconclusive(self) -> None:
        """Record an escalation that shows nothing of the link."""
        with self._ended():
            self._breaker.inconclusive()

    def queue_reported(self, queue_s: float) -> None:
        """Record the cloud's own estimate of its queue."""
        with self._lock:
            self._measured.queue_reported(queue_s)
            self._response_at_s = self._clock()

    def _why_down(self) -> str:
        waiting = self._response_at_s is None and self._grace_until_s is not None
        return self._down or (NO_RESPONSE_YET if waiting else "")

    @contextmanager
    def _ended(self, *, suspect: bool = False) -> Iterator[None]:
        """Record the end of an escalation; a suspect link is checked at once."""
        with self._lock:
            self.receiving = False
            yield
        if suspect:
            self.suspect.set()
