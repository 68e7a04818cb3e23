"""What users do and see, in the audit trail: a view is recorded before its content is answered."""

import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import structlog

from edge.audit import Event, Person
from edge.errors import EdgeError
from edge.site import Site

SAME_S, AGAIN_S = 60.0, 3600.0
"""A user who sees the same thing again within the first time has one view; it is recorded again
after the second. So the hundreds of slices of a viewer are one record, and an open page a few."""

log = structlog.get_logger()


def audited(site: Site, event: Event, by: Person, **facts: Any) -> bool:
    """Record what a user does in the audit trail; return whether that could be done."""
    try:
        with site.opened() as store:
            store.trail.record(event, **by.fields, **facts)
    except (EdgeError, OSError, sqlite3.Error) as error:
        log.warning("audit trail cannot be written", what=event.value, error=str(error))
        return False
    return True


class Views:
    """The views of the last minute; several threads may use it."""

    def __init__(self, site: Site, clock: Callable[[], float]) -> None:
        self._site, self._clock, self._lock = site, clock, threading.Lock()
        self._seen: dict[str, tuple[float, float]] = {}  # recorded, and last seen

    def record(self, by: Person, what: str, *within: tuple[str, str], **facts: Any) -> bool:
        """Record a view, unless it is one already; return whether that could be done.

        ``within`` is what the user sees with it, with study keys: it is no view of its own.
        """
        now_s, view = self._clock(), f"{by} {what} {[*facts.values()]}"
        with self._lock:
            self._seen = {
                name: (first_s, last_s)
                for name, (first_s, last_s) in self._seen.items()
                if last_s > now_s - SAME_S and first_s > now_s - AGAIN_S
            }
            is_new = view not in self._seen
            if is_new and not audited(self._site, Event.VIEWED, by, what=what, **facts):
                return False
            for one in (view, *(f"{by} {part} {[key]}" for part, key in within)):
                self._seen[one] = self._seen.get(one, (now_s, now_s))[0], now_s
            return True
