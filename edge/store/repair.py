"""Open the database of the agent; a new one takes the place of one that is damaged or deleted.

A damaged one is set aside, not deleted. What the new one lacks is adopted from the folders
(`edge.agent.adopt`).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from edge.atomic_files import move
from edge.database import RESTART, InvalidDatabase, Schema, StepHook, is_damage, migrate, naming
from edge.store.studies import StudyStore, all_migrations

log = structlog.get_logger()


def open_or_replace(path: Path, schema: Schema, on_step: StepHook) -> StudyStore:
    """Open the database and check all of it; replace it by a new one if it is damaged.

    Raises:
        InvalidDatabase: it cannot be opened for another reason, such as its permissions.
        OtherVersion: a newer version of the program has used it.
    """
    try:
        with naming(path):
            migrate(path, all_migrations(schema), on_step)
        store = StudyStore(path, schema, on_step)
        if not (problem := store.problem()):
            return store
        store.close()
    except InvalidDatabase as error:
        if not is_damage(error.__cause__, opening=True):
            raise
        problem = str(error.__cause__)
    set_aside(path, problem)
    return StudyStore(path, schema, on_step)


@contextmanager
def opened(path: Path, schema: Schema, on_step: StepHook) -> Iterator[StudyStore]:
    """Open the database as `open_or_replace` while the agent runs; in the end its log is empty.

    In the place of a file that was replaced, it would be taken for that of the other one.
    """
    with ending_where_damaged(path), open_or_replace(path, schema, on_step) as store:
        try:
            yield store
        finally:
            with suppress(sqlite3.Error):
                store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def ending_where_damaged(path: Path) -> Iterator[None]:
    """Set the database aside where it turns out to be damaged; the main loop ends by that.

    Raises:
        InvalidDatabase: it was damaged.
    """
    try:
        yield
    except Exception as error:  # parts raise their own errors, caused by sqlite
        if is_damage(error) or is_damage(error.__cause__):
            set_aside(path, str(error))
            raise InvalidDatabase(f"{path}: {error}: {RESTART}") from error
        raise


def set_aside(path: Path, problem: str) -> None:
    """Rename a damaged database and its log, and say so."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    for suffix in ("", "-wal", "-shm"):
        if (file := path.with_name(f"{path.name}{suffix}")).exists():
            move(file, path.with_name(f"{path.name}.damaged-{stamp}{suffix}"))
    log.error(
        "database damaged, set aside",
        file=f"{path.name}.damaged-{stamp}",
        reason=problem,
        hint="studies are adopted from the folders, pending reads are lost",
    )


def damaged_databases(path: Path) -> list[Path]:
    """Return the databases that were set aside, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(p for p in found if not p.name.endswith(("-wal", "-shm")))
