"""Deadlines: points in time on a monotonic clock, inside one process.

On the wire a deadline is the remaining seconds, since the clocks of two machines differ.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass(frozen=True, order=True)
class Deadline:
    """``at_s`` on the ``clock`` that it was made with; earlier deadlines sort first."""

    at_s: float
    clock: Clock = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after(cls, budget_s: float, clock: Clock = time.monotonic) -> "Deadline":
        """Return the deadline ``budget_s`` seconds from now."""
        return cls(clock() + budget_s, clock)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative: for the wire and for timeouts."""
        return max(0.0, self.at_s - self.clock())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s == 0.0

    def capped(self, budget_s: float) -> "Deadline":
        """Return this deadline, or the one ``budget_s`` from now if that is earlier."""
        return min(self, Deadline.after(budget_s, self.clock))
