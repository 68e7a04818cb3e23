"""A wall clock that jumps by an hour up to more than a year, both ways, in place of the edge's.

The time of day is replaced in every module of the edge, and for no library: pynetdicom's timers go
by it, and would abort associations. Monotonic time stays, as it does where an administrator or a
time server sets a clock.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from random import Random
from typing import Any, Self

SHORTEST_S, LONGEST_S = 3600.0, 400 * 24 * 3600.0
"""Of a jump: the longest is longer than pending reads are kept."""

JUMPS, LOOKS = 1, 2
"""Places of the counts in the memory that the processes share."""


class WallClock:
    """A time of day that jumps at random, also when it is read.

    ``counts`` has at `JUMPS` how often it was set, and at `LOOKS` how often it was read.
    """

    def __init__(self, seed: int, real_s: float, counts: Any) -> None:
        self._chance, self._ahead_s, self._counts = Random(seed), 0.0, counts
        self._began_s = real_s - time.monotonic()

    def jump(self) -> None:
        """Set the clock before or after the right time."""
        by_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** self._chance.random()
        self._ahead_s = self._chance.choice((-1.0, 1.0)) * by_s
        self._counts[JUMPS] += 1

    def now_s(self) -> float:
        """Return the seconds since 1970 by this clock."""
        self._counts[LOOKS] += 1
        if self._chance.random() < 0.5:
            self.jump()
        return self._began_s + time.monotonic() + self._ahead_s


@contextmanager
def edge_clock(clock: WallClock) -> Iterator[None]:
    """Replace the time of day in the edge by ``clock`` for the time of the context."""

    class Jumping(datetime):
        """The time of day by that clock."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """As `datetime.now`."""
            return cls.fromtimestamp(clock.now_s(), tz)

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "edge"]
    dated = [module for module in modules if getattr(module, "datetime", None) is datetime]
    real = time.time

    def seconds() -> float:
        asks = sys._getframe(1).f_globals.get("__name__", "")  # no other way
        return clock.now_s() if asks.split(".")[0] == "edge" else real()

    for module in dated:
        module.datetime = Jumping  # type: ignore[attr-defined] # each imports it by this name
    time.time = seconds
    try:
        yield
    finally:
        time.time = real
        for module in dated:
            module.datetime = datetime  # type: ignore[attr-defined] # put back, by the same name
