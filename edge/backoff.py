"""How long one waits after an asking in vain: longer and longer.

Where nobody answered at all the link is down, and no debt is asked for until its pause is over:
an asking keeps the agent from the studies that arrive. Where the cloud refused a study, that
study alone waits. How many askings in a row were in vain, of whatever study, tells how long the
next may take. It lives with the process: a start asks for everything once.
"""

from __future__ import annotations

from collections.abc import Callable

LONGEST_LINK_S = 300.0
LONGEST_REFUSED_S = 3600.0


class Backoff:
    """When each debt may be asked for again, on a monotonic clock.

    Args:
        first_s: the pause after the first asking in vain; it doubles with each one more.
        clock: monotonic seconds.
        jitter: uniform between two bounds.
    """

    def __init__(
        self,
        first_s: float,
        clock: Callable[[], float],
        jitter: Callable[[float, float], float],
    ) -> None:
        self._first_s, self._clock, self._jitter = first_s, clock, jitter
        self._refused_until: dict[str, float] = {}
        self._link_until, self._unheard = float("-inf"), 0
        self._in_vain = 0

    @property
    def in_vain(self) -> int:
        """Askings in a row that brought no verdict; that the link was found again ends no row."""
        return self._in_vain

    def due(self, key: str) -> bool:
        """Whether this debt may be asked for now."""
        return self._clock() >= max(self._link_until, self._refused_until.get(key, float("-inf")))

    def unheard(self) -> None:
        """Nobody answered: no debt is asked for during the pause, five minutes at most."""
        self._unheard += 1
        self._in_vain += 1
        self._link_until = self._clock() + self._pause_s(self._unheard, LONGEST_LINK_S)

    def refused(self, key: str, attempts: int) -> None:
        """The cloud would not answer asking number ``attempts``: it waits, an hour at most."""
        self.heard()
        self._in_vain += 1
        self._refused_until[key] = self._clock() + self._pause_s(attempts, LONGEST_REFUSED_S)

    def answered(self) -> None:
        """An asking brought a verdict."""
        self.heard()
        self._in_vain = 0

    def heard(self) -> None:
        """The cloud answers: the link is no reason to wait any more."""
        self._link_until, self._unheard = float("-inf"), 0

    def over(self, key: str) -> None:
        """Nothing is owed any more."""
        self._refused_until.pop(key, None)

    def _pause_s(self, count: int, longest_s: float) -> float:
        """From the upper half of what is allowed, so that agents do not come back together."""
        most_s = min(longest_s, self._first_s * 2.0 ** min(count - 1, 30))
        return self._jitter(most_s / 2, most_s)
