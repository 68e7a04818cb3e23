"""The database of the state folder: opening it, and transactions.

WAL and ``synchronous=FULL``: what a transaction has written survives a power cut once it returns.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge.access import close_files
from edge.errors import EdgeError

BUSY_S = 0.5
"""How long to wait for another process that holds the database.

It counts against a study's deadline, and must be well below the default of ``reserve_s``. After it,
sqlite raises an error that `edge.atomic_files.is_transient` knows.
"""

MAX_LOG_PAGES = 16_384
"""The log (WAL) is written into the database at this length, 64 MB, whatever else is due.

Usually `edge.agent.loop` has it written before, when no study waits.
"""


class WrongStep(EdgeError):
    """A study or pending read is not at the expected step: another process has moved it."""


def open_database(path: Path) -> sqlite3.Connection:
    """Connect to the database at ``path``, and create it if it is missing; rows have names.

    Raises:
        sqlite3.Error: it cannot be opened, or is not a database.
    """
    with suppress(OSError):  # sqlite says what is wrong
        path.touch(mode=0o600)
        for file in path.parent.glob(f"{path.name}*"):  # with the files -wal and -shm
            close_files(file)
    database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(f"PRAGMA wal_autocheckpoint = {MAX_LOG_PAGES}")
    except sqlite3.Error:
        database.close()
        raise
    return database


def file_identities(path: Path) -> dict[Path, tuple[int, int]]:
    """Return device and inode of the database's file, and of its log where there is one.

    Raises:
        OSError: the folder cannot be read; a missing file is none.
    """
    found: dict[Path, tuple[int, int]] = {}
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(f"{path.name}{suffix}")
        with suppress(FileNotFoundError):
            status = file.stat()
            found[file] = status.st_dev, status.st_ino
    return found


def columns(database: sqlite3.Connection) -> set[str]:
    """Return ``table.column`` of all columns."""
    query = (
        "SELECT t.name || '.' || c.name FROM sqlite_master AS t"
        " JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'"
    )
    return {row[0] for row in database.execute(query)}


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Run a transaction: at its end everything is durable, after an exception nothing is done."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
