"""Stops asking for a while when nobody answers, then lets exactly one escalation find out."""

from __future__ import annotations

from collections.abc import Callable


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
