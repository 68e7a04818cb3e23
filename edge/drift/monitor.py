"""Drift as pages and metrics ask for it: compared again when there are new observations."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from edge.drift.compare import BASELINE, RECENT, Drift, compare
from edge.drift.store import observations

NOTHING = Drift("", (), ())

Open = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""Opens the database for reading."""


class DriftMonitor:
    """Drift of the model that read the last study; several threads may ask."""

    def __init__(self, open_database: Open) -> None:
        self._open, self._lock = open_database, threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._drift = NOTHING

    def current(self) -> Drift:
        """Return what is known now.

        Raises:
            sqlite3.Error: the database does not answer.
        """
        with self._lock, self._open() as database:
            seen = database.execute(
                "SELECT count(*), max(rowid), max(updated), sum(provisional) FROM drift"
            ).fetchone()
            if tuple(seen) != self._seen:
                self._drift = _load(database)
                self._seen = tuple(seen)
            return self._drift

    def level(self, measure: str) -> float:
        """Return the level of a measure as a number, 0 where nothing is known."""
        try:
            found = self.current().measures
        except sqlite3.Error:
            return 0.0
        return float(next((one.level.value for one in found if one.name == measure), 0))


def _load(database: sqlite3.Connection) -> Drift:
    last = database.execute(
        "SELECT model FROM drift WHERE model != '' ORDER BY rowid DESC LIMIT 1"
    ).fetchone()
    if last is None:
        return NOTHING
    model = str(last[0])
    first = observations(database, model, first=BASELINE)
    end = first[-1][0]
    recent = [seen for number, seen in observations(database, model, last=RECENT) if number > end]
    return compare(model, [seen for _, seen in first], recent)
