"""Logins to the status page in the audit trail.

A login that cannot be recorded is none. Of failed ones at most `MOST_FAILED` are recorded within
`WITHIN_S`, so that a flood does not fill the disk; the next record says how many were left out.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from edge.errors import EdgeError
from edge.status.login import SESSION_S
from edge.store.repair import opened
from edge.trail.records import Event, Person

MOST_FAILED, WITHIN_S = 20, 3600.0
MOST_VISITORS = 1000
"""Visitors with a certificate that are remembered."""

log = structlog.get_logger()


class LoginTrail:
    """Records logins in the database of the agent; several threads may use it."""

    def __init__(self, database: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock, self._lock = database, clock, threading.Lock()
        self._failed: list[float] = []
        self._left_out = 0
        self._seen: dict[Person, float] = {}

    def succeeded(self, person: Person) -> bool:
        """Record a login; return whether that could be done."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return self._record(person, "success", "", left_out)

    def failed(self, person: Person, reason: str) -> None:
        """Record a failed login, unless there were too many."""
        with self._lock:
            now_s = self._clock()
            self._failed = [at_s for at_s in self._failed if at_s > now_s - WITHIN_S]
            if len(self._failed) >= MOST_FAILED:
                self._left_out += 1
                return
            self._failed.append(now_s)
            left_out, self._left_out = self._left_out, 0
        self._record(person, "failure", reason, left_out)

    def came(self, person: Person) -> None:
        """Record a visitor with a certificate, once for as long as a session lasts."""
        with self._lock:
            now_s = self._clock()
            if now_s - self._seen.get(person, float("-inf")) < SESSION_S:
                return
            self._seen.pop(person, None)
            while len(self._seen) >= MOST_VISITORS:
                self._seen.pop(next(iter(self._seen)))
            self._seen[person] = now_s
        if not self.succeeded(person):
            with self._lock:
                self._seen.pop(person, None)  # the next page tries again

    def _record(self, person: Person, outcome: str, reason: str, left_out: int) -> bool:
        more: dict[str, str | int] = {"reason": reason} if reason else {}
        if left_out:
            more["failures_not_recorded"] = left_out
        try:
            with opened(self._database) as store:
                store.trail.record(Event.LOGIN, outcome=outcome, **person.fields, **more)
        except (EdgeError, OSError, sqlite3.Error) as error:
            log.warning("login cannot be recorded", error=str(error))
            with self._lock:
                self._left_out += left_out
            return False
        return True
