"""Measures the link to the cloud, and stops asking for a while when nobody answers.

It knows nothing of studies, budgets or scores: `edge.decide` chooses by its estimate.

Stops asking for a while when nobody answers, then lets exactly one escalation find out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edge.link.estimate import HALF_LIFE_S, SLOW, Arrival, LinkEstimate, Measured


class Breaker:
    """Closed while escalations are answered; open after ``failures`` in a row that were not.

    A failure is a fault of the link, or a deadline that passed with nothing answered. An open
    breaker turns everyone away for ``cool_off_s``. Then it is half-open: one escalation enters as
    the probe, others are turned away until it has ended. Its success closes the breaker, its
    failure opens it again; one that tells neither leaves the place to the next.
    """

    def __init__(self, clock: Callable[[], float], failures: int, cool_off_s: float) -> None:
        self._clock, self._allowed, self._cool_off_s = clock, failures, cool_off_s
        self._failed, self._last_fault, self._probe_out = 0, "", False
        self._closed_until_s = float("-inf")

    @property
    def half_open(self) -> bool:
        """Whether the next escalation would be the probe, or one is out."""
        return self._failed >= self._allowed and self._clock() >= self._closed_until_s

    @property
    def why_shut(self) -> str:
        """Why nobody may ask now; empty where one may."""
        if (wait_s := self._closed_until_s - self._clock()) > 0:
            return f"{self._last_fault}; not asked again for {wait_s:.0f} s"
        if self._probe_out:
            return f"{self._last_fault}; another study is finding out whether that is over"
        return ""

    def enter(self) -> bool:
        """Lets one escalation in, as the probe if half-open; it must end in one of the below."""
        if self.why_shut:
            return False
        self._probe_out = self.half_open
        return True

    def succeeded(self) -> None:
        """The escalation was answered."""
        self._failed, self._probe_out, self._closed_until_s = 0, False, float("-inf")

    def failed(self, fault: str) -> None:
        """The escalation was not answered, because of ``fault``."""
        self._failed, self._last_fault, self._probe_out = self._failed + 1, fault, False
        if self._failed >= self._allowed:
            self._closed_until_s = self._clock() + self._cool_off_s

    def left(self) -> None:
        """The escalation ended, and tells nothing of whether the cloud can be reached."""
        self._probe_out = False


CONNECT_S = 3.0
"""What connecting may take; so long one waits for a sign of a cloud not heard of for a while."""

UNHEARD = "the cloud has not answered yet"

HEARD_LATELY_S = 60.0
LEAST_PATIENCE_S = 1.0
ROUND_TRIPS = 4
"""So many of the slow ones pass before silence counts as one."""


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
        self._measured = Measured(clock, half_life_s)
        self._heard_at_s: float | None = None
        self._due_at_s: float | None = None
        self._known = threading.Event()
        self._timed_at_s, self._talking, self._lost = float("-inf"), False, ""
        self.doubted = threading.Event()

    def estimate(self) -> LinkEstimate:
        """What to expect now: quantiles of what was measured, the old counting for less."""
        with self._lock:
            reason, heard_at_s = self._why_gone() or self._breaker.why_shut, self._heard_at_s
            return LinkEstimate(
                available=not reason,
                reason=reason,
                middle=self._measured.pace(0.5),
                slow=self._measured.pace(SLOW),
                probing=self._breaker.half_open,
                silent_s=None if heard_at_s is None else self._clock() - heard_at_s,
            )

    def enter(self) -> bool:
        """Whether one may ask now."""
        with self._lock:
            return not self._why_gone() and self._breaker.enter()

    @property
    def round_trip_s(self) -> float | None:
        """The median of those measured; None before the first."""
        with self._lock:
            return self._measured.round_trip_s

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
            return max(LEAST_PATIENCE_S, ROUND_TRIPS * self._measured.pace(SLOW).round_trip_s)

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
        due_at_s = self._due_at_s  # once: `unwatched` may come between
        if due_at_s is not None:
            self._known.wait(max(0.0, due_at_s - self._clock()))

    def found(self, round_trip_s: float | None) -> None:
        """The cloud is there; ``round_trip_s`` is None where connecting was a part of it.

        One round trip a minute is taken in: what escalations measure must not be forgotten for it.
        """
        with self._lock:
            self._lost, self._heard_at_s = "", self._clock()
            self._known.set()
            if round_trip_s is not None and self._clock() - self._timed_at_s >= HEARD_LATELY_S:
                self._timed_at_s = self._clock()
                self._measured.timed(round_trip_s)

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
                self._measured.take(arrivals, heard_s)

    def missed(
        self, sent_bytes: int, after_s: float, heard_s: float | None = None, *, counts: bool = True
    ) -> None:
        """Takes in that ``sent_bytes`` were not answered ``after_s`` later, at the deadline.

        Args:
            sent_bytes: of what might have been answered first.
            after_s: from when they could be sent.
            heard_s: what the first sign of the cloud took, None for none.
            counts: whether the breaker counts it; else it tells of slowness alone.
        """
        with self._ended(doubtful=True):
            if counts:
                self._breaker.failed(f"nothing was answered within {after_s:.1f} s")
            else:
                self._breaker.left()
            self.slower_than(sent_bytes, after_s, heard_s)

    def slower_than(
        self, sent_bytes: int, after_s: float, heard_s: float | None = None, rois: int = 1
    ) -> None:
        """Takes in that an answer to ``rois`` of ``sent_bytes`` takes longer than ``after_s``."""
        with self._lock:
            self._measured.slower_than(sent_bytes, after_s, heard_s, rois)

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
            self._measured.queue_said(queue_s)
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
