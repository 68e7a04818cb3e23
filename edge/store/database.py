"""The one database of the state folder: how it is opened, and what is done in it all or not at all.

WAL and ``synchronous=FULL``: what a transaction has written outlasts a power cut when it returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import EdgeError

BUSY_S = 0.5
"""So long one waits for another who holds the database: it counts against a study's deadline, and
must be well below the default of ``reserve_s``. What comes after it is `edge.atomic_files.passes`."""


class WrongStep(EdgeError):
    """A study or debt cannot make this step from where it is: another process has moved it."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection to the database at ``path``, made if need be; its rows go by name.

    Raises:
        sqlite3.Error: it cannot be opened, or is no database.
    """
    database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        database.close()
        raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """What is done while it lasts is durable at its end, all of it, or not done at all."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
