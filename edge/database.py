"""The database of the state folder: opening it, transactions, its versions, and what is in it.

WAL and ``synchronous=FULL``: what a transaction has written survives a power cut once it returns.

The version of a database is the number of the last migration that it had (``PRAGMA user_version``).
Core and parts each have their migrations, and all numbers are different. A migration is never
changed once it is released: a change of a table is a new migration with the next number.

A part stores its rows in the transaction of the step that they belong to. So the core calls it
there (`StoreExtension`), and knows nothing else of it.
"""

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

from edge.access import close_files, whose
from edge.atomic_files import sync_folder
from edge.audit import AuditTrail
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

ROOM_BYTES = 100_000_000
"""What should be free where the disk is full: the log of `MAX_LOG_PAGES`, and some more."""

RESTART = "restart the agent, which sets what is damaged aside and adopts the studies"
"""What to do with a damaged or lost database; a start of an agent that does not run is as good."""

StepHook = Callable[[Enum, bool], None]
"""Called with each durable step twice: just before it is made durable (False) and just after."""

_WRITING = threading.RLock()
"""Held by the one of this process's threads that writes; SQLite gives no order to those that wait,
and one of many would wait longer than `BUSY_S`."""

log = structlog.get_logger()


class WrongStep(EdgeError):
    """A study or pending read is not at the expected step: another process has moved it."""


class InvalidDatabase(EdgeError):
    """The database of the state folder cannot be opened, is damaged, or was deleted or replaced."""


class FullDisk(InvalidDatabase):
    """The database cannot be opened because its disk is full; the message says what to free."""


class OtherVersion(EdgeError):
    """The database is of another version of the program; the message says what to do."""


class OlderVersion(OtherVersion):
    """The database is of an older version of the program: the agent migrates it at its start."""


class MigrationStep(Enum):
    """A durable step of a migration."""

    BACKED_UP = "backed up"  # a copy of the database is in the state folder
    MIGRATED = "migrated"  # told before each migration; all are done in one transaction


@dataclass(frozen=True)
class Migration:
    """One change of the tables: its number, unique in the whole product, and its SQL."""

    number: int
    script: str


class StoreExtension(Protocol):
    """What a part stores beside the studies."""

    def reported(self, key: str, versions: Iterable[int]) -> None:
        """Note that these versions of a report are out; part of the transaction that says so."""

    def forget_report(self, key: str) -> None:
        """Delete what is known of a report that is gone; part of the transaction that says so."""

    def held(self, *, studies: bool = False) -> set[str]:
        """Return the keys of the studies whose reports must stay; or whose images must."""


Extend = Callable[[sqlite3.Connection, AuditTrail, StepHook], StoreExtension]
"""Opens an extension in an open database."""


OpenAudit = Callable[[sqlite3.Connection, StepHook], AuditTrail]
"""Opens the audit trail in an open database."""


def no_audit(_database: sqlite3.Connection, _on_step: StepHook) -> AuditTrail:
    """Return a trail that records nothing."""
    return AuditTrail()


@dataclass(frozen=True)
class Schema:
    """What the parts store in the database.

    Attributes:
        migrations: of the parts, in any order; those of the core are always there.
        audit: opens the audit trail in an open database.
        extensions: open what is stored beside the studies.
    """

    migrations: tuple[Migration, ...] = ()
    audit: OpenAudit = no_audit
    extensions: tuple[Extend, ...] = ()

    @classmethod
    def joined(cls, schemas: Iterable["Schema"]) -> "Schema":
        """Return what all of these store; one of them at most has an audit trail."""
        every = tuple(schemas)
        return cls(
            tuple(one for schema in every for one in schema.migrations),
            next((one.audit for one in every if one.audit is not no_audit), no_audit),
            tuple(one for schema in every for one in schema.extensions),
        )


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


def files_of(path: Path) -> dict[Path, tuple[int, int]]:
    """Return device and inode of the database's file, and of those of its log that are there."""
    files = [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    found = {file: file.stat() for file in files if file.exists()}
    return {file: (status.st_dev, status.st_ino) for file, status in found.items()}


def require_own_files(path: Path, own: Mapping[Path, tuple[int, int]]) -> None:
    """Check that the files at ``path`` are still the ``own`` ones, into which the agent writes.

    While the folder cannot be read, or its files seem to change by themselves, nothing is known.

    Raises:
        InvalidDatabase: one was deleted, renamed or replaced.
    """
    with suppress(OSError):
        now = files_of(path)
        lost = [str(file) for file in own if now.get(file) != own[file]]
        if lost and now == files_of(path):
            why = "deleted, renamed or replaced while the agent ran"
            raise InvalidDatabase(f"{' and '.join(lost)}: {why}: {RESTART}")


def is_empty(database: sqlite3.Connection) -> bool:
    """Return whether a database has no tables."""
    return database.execute("SELECT 1 FROM sqlite_master").fetchone() is None


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Run a transaction: at its end everything is durable, after an exception nothing is done."""
    with _WRITING:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


@contextmanager
def durable(database: sqlite3.Connection, on_step: StepHook, step: Enum) -> Iterator[None]:
    """Run a transaction that makes a step durable, and tell the hook before and after it."""
    on_step(step, False)
    with transaction(database):
        yield
    on_step(step, True)


def migrate(
    path: Path, migrations: Sequence[Migration], on_step: StepHook = lambda _step, _durable: None
) -> None:
    """Bring the database at ``path`` to the version of this program; an empty one stays empty.

    ``migrations`` are all, in the order of their numbers.
    All migrations that are due are one transaction, so there is no version between two releases.
    Before it a copy is made, ``NAME.version-N`` in the same folder; it takes the place of an older
    copy. It may be repeated after a crash at any point. Only the agent migrates: it alone holds
    the folder.

    Raises:
        OtherVersion: a newer version of the program has used it.
        sqlite3.Error: it is damaged, cannot be opened, or the disk is full.
        OSError: the copy cannot be written.
    """
    with closing(open_database(path)) as database:
        version = require_known(database, path, migrations)
        due = [one for one in migrations if one.number > version]
        if not due or is_empty(database):
            return
        on_step(MigrationStep.BACKED_UP, False)
        _back_up(database, path, version)
        on_step(MigrationStep.BACKED_UP, True)
        with transaction(database):
            for migration in due:
                on_step(MigrationStep.MIGRATED, False)
                try:
                    _apply(database, migration)
                except sqlite3.OperationalError as error:
                    # a database without a version may be damaged
                    if not version or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
                        raise
                    raise OtherVersion(
                        f"{path}: migration {migration.number} failed, and changed nothing:"
                        f" {error}. Install the version that ran before, and report this"
                    ) from error
        on_step(MigrationStep.MIGRATED, True)
        log.info("database migrated", before=version, now=due[-1].number, file=path.name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the database in every error of opening it.

    Raises:
        FullDisk: there is no room for what opening it writes.
        InvalidDatabase: it cannot be opened for another reason, or is not a database.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if _is_full(error, path.parent):
            raise FullDisk(full_disk(path.parent)) from error
        allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=True)
        why = "" if allowed or not path.exists() else f"; {whose(path)}"
        hint = f": {RESTART}" if is_damage(error, opening=True) else ""
        raise InvalidDatabase(f"{path}: {error}{why}{hint}") from error


def is_damage(error: BaseException | None, *, opening: bool = False) -> bool:
    """Return whether the error says that the content is damaged.

    While it is ``opening``, a table or column that is missing is one too.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    is_other = opening and code == sqlite3.SQLITE_ERROR
    return is_other or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(error: sqlite3.Error | OSError, folder: Path) -> bool:
    """Return whether a full disk is the cause; SQLite may say only that input or output failed."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    is_vague = code == sqlite3.SQLITE_IOERR
    return code == sqlite3.SQLITE_FULL or (is_vague and shutil.disk_usage(folder).free < 1_000_000)


def full_disk(folder: Path) -> str:
    """Return that the disk of a folder is full, and what to do."""
    free, wanted = shutil.disk_usage(folder).free / 1e6, ROOM_BYTES / 1e6
    return f"{folder}: the disk is full ({free:.1f} MB free), make at least {wanted:.0f} MB free"


def make_tables(database: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Make all tables in an empty database, in one transaction."""
    with transaction(database):
        for one in migrations:
            _apply(database, one)


def require_known(database: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> int:
    """Return the version of a database.

    Raises:
        OtherVersion: a newer version of the program has used it.
    """
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    known = migrations[-1].number
    if version > known:
        raise OtherVersion(
            f"{path}: version {version}, but this program knows no more than {known}: a newer"
            " Overread has used it. Install that one again. To go back instead, stop the agent,"
            f" delete {path.name}-wal, and put the newest copy, {path.name}.version-N, in its"
            " place: what the newer one did since is lost"
        )
    return version


def require_current(
    database: sqlite3.Connection, path: Path, migrations: Sequence[Migration]
) -> None:
    """Check that a database is of the version of this program.

    Raises:
        OlderVersion: it is older.
        OtherVersion: it is newer.
    """
    version = require_known(database, path, migrations)
    if version < (known := migrations[-1].number):
        raise OlderVersion(
            f"{path}: version {version}, expected {known}: start the agent, which migrates it"
        )


def problem_in(database: sqlite3.Connection) -> str:
    """Check a whole database: return what is damaged in it, empty for nothing."""
    try:
        (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
        return "" if result == "ok" else str(result)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return str(error)


def copies(path: Path) -> list[Path]:
    """Return the copies that migrations have made, in the order of their versions."""
    found = [p for p in path.parent.glob(f"{path.name}.version-*") if p.suffix[9:].isdigit()]
    return sorted(found, key=lambda copy: int(copy.suffix[9:]))


def _apply(database: sqlite3.Connection, migration: Migration) -> None:
    """Run the statements of a migration and set its number; part of an open transaction."""
    statement = ""
    for line in migration.script.splitlines(keepends=True):
        statement += line
        # not `executescript`, which would end the transaction
        if sqlite3.complete_statement(statement):
            database.execute(statement)
            statement = ""
    database.execute(f"PRAGMA user_version = {migration.number}")


def _back_up(database: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the database beside itself under the name of its version; remove older copies."""
    new, copy = (
        path.with_name(f"{path.name}.copy"),
        path.with_name(f"{path.name}.version-{version}"),
    )
    for file in path.parent.glob(f"{new.name}*"):  # a crash has left it
        file.unlink()
    with closing(sqlite3.connect(new)) as target:
        new.chmod(0o600)
        database.backup(target)
    with new.open("rb") as written:
        os.fsync(written.fileno())
    before = copies(path)
    new.replace(copy)
    for old in before:
        if old != copy:
            old.unlink()
    sync_folder(path.parent)
