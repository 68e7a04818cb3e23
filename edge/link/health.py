"""Looks now and then whether the cloud is there, so that no study has to find out.

It keeps the connection warm, tells the link when the cloud is gone, and when it is back. It knows
nothing of gRPC: a knock is whatever can be waited for and cancelled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

import structlog

from edge.link.link import Link
from protos.errors import LinkFault

log = structlog.get_logger()

ANSWER_S = 3.0
"""A knock not answered by then was in vain; enough for connecting over a satellite."""

LOST_EVERY_S = 1.0
"""While the cloud is gone it is looked for so often at least."""


class Knocks(Protocol):
    """A question under way."""

    def fault(self) -> LinkFault | None:
        """Waits; None where the cloud is there."""

    def cancel(self) -> None:
        """Ends it."""


class Watch:
    """Knocks from a thread of its own while it is entered.

    Args:
        knock: asks, with the seconds that the answer may take.
        link: is told what was found; an escalation in doubt makes it look at once.
        every_s: pause between two looks.
        first_s: so long after the start a study waits for the cloud to be found; not at all later.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        knock: Callable[[float], Knocks],
        link: Link,
        every_s: float,
        *,
        first_s: float = ANSWER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._knock, self._link, self._every_s, self._clock = knock, link, every_s, clock
        self._first_s = first_s
        self._lock, self._over, self._there = threading.Lock(), False, False
        self._asked: Knocks | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._link.awaited(self._first_s)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            if self._asked is not None:
                self._asked.cancel()
        self._link.doubted.set()
        self._thread.join()
        self._link.unwatched()

    def _run(self) -> None:
        try:
            while self._look():
                pause_s = self._every_s if self._there else min(self._every_s, LOST_EVERY_S)
                self._link.doubted.wait(pause_s)
                self._link.doubted.clear()
        except Exception:  # whatever it is, a link that nobody watches must not stay lost
            log.exception("the watch ended, studies find out for themselves")
            self._link.found(None)

    def _look(self) -> bool:
        """Knocks once, unless an escalation hears the cloud; False when the watch is over."""
        if self._link.talking:
            return not self._ends()
        began_s = self._clock()
        with self._lock:
            if self._over:
                return False
            self._asked = knock = self._knock(self._patience_s())
        fault = knock.fault()
        if not self._ends():
            self._tell(fault, self._clock() - began_s)
        return not self._ends()

    def _patience_s(self) -> float:
        """A cloud that was there is there at once; for another there is time to connect."""
        if self._there:
            return min(ANSWER_S, self._link.patience_s())
        return max(ANSWER_S, self._first_s)

    def _ends(self) -> bool:
        with self._lock:
            return self._over

    def _tell(self, fault: LinkFault | None, took_s: float) -> None:
        if fault is None:
            self._link.found(took_s if self._there else None)
        else:
            self._link.lost(f"{fault.kind}: {fault.reason}")
        self._there = fault is None
