"""A point in time by which something must be done: monotonic inside a process.

On the wire a deadline is the seconds that remain, for clocks of two machines do not agree.
"""

from __future__ import annotations

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
    def after(cls, budget_s: float, clock: Clock = time.monotonic) -> Deadline:
        """The deadline ``budget_s`` seconds from now."""
        return cls(clock() + budget_s, clock)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative: what goes on the wire and into timeouts."""
        return max(0.0, self.at_s - self.clock())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s == 0.0

    def capped(self, budget_s: float) -> Deadline:
        """This deadline, or the one ``budget_s`` from now if that is earlier."""
        return min(self, Deadline.after(budget_s, self.clock))
