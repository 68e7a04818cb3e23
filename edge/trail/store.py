"""The audit trail in the database: a record is inserted in the transaction of what it describes.

So there is no step without its record, and no record of a step that was rolled back. The chain is
made here: the head, which is sequence and hash of the last record, is a row of its own. `flush`
appends the records to the files, and then deletes them here. It may die at any point: a record
that is already in the files is not appended again.

    step and record, one transaction -> flush: files, synchronised -> record deleted in the database

The head stays here, so that records cut from the end of the files are missed.
"""

import socket
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from edge.audit import AuditTrail, Event
from edge.database import Migration, StepHook, transaction
from edge.trail.records import (
    MAX_FILE_BYTES,
    End,
    InvalidRecord,
    TrailRecord,
    append,
    digest,
    end_of,
    file_name,
    files_in,
    lines_of,
    records_after,
    repair,
)

_TABLES = """
CREATE TABLE IF NOT EXISTS trail_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    agent TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    hash TEXT NOT NULL,
    file TEXT NOT NULL,
    file_bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS trail_records (
    sequence INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    line TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS trail_subjects (
    study_key TEXT PRIMARY KEY,
    patient_id TEXT NOT NULL,
    study_uid TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS trail_removals (
    study_key TEXT NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (study_key, event)
);
"""

MIGRATIONS = (Migration(2, _TABLES),)

log = structlog.get_logger()


class TrailStep(Enum):
    """A durable step of the trail's files."""

    APPENDED = "appended"  # the records are in their file; the database may have them too


@dataclass(frozen=True)
class Head:
    """The random identity of the agent, and where its records end: those that wait included."""

    agent: str
    end: End


@dataclass(frozen=True)
class Waiting:
    """A record that is not known to be in the files yet, with the name of its file."""

    sequence: int
    file: str
    line: str


class TrailStore(AuditTrail):
    """The audit trail in an open database, with its files in ``folder``.

    Any process may record. Only the agent may flush.

    Args:
        now: wall-clock time in UTC.
        max_file_bytes: beyond this size a file is ended.
        on_step: is called with every durable step.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        folder: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_file_bytes: int = MAX_FILE_BYTES,
        on_step: StepHook = lambda _step, _durable: None,
    ) -> None:
        self._database, self.folder = database, folder
        self._now, self._max_file_bytes, self._on_step = now, max_file_bytes, on_step
        self._end: End | None = None  # of the files; None: not looked at, or not to be relied on

    def record(self, event: Event, **fields: Any) -> None:
        """Record an event, in the transaction that is open, else in one of its own.

        ``fields`` are JSON values. They may hold the identifiers of patient and study, and no
        other data of the patient. A record with a ``study_key`` has ``patient_id`` and
        ``study_uid`` too, where an earlier one of this study had them.

        Raises:
            TypeError, ValueError: a field is no JSON value.
            sqlite3.OperationalError: nothing can be written now; nothing was recorded.
            OSError: the database is new, and older files cannot be read.
        """
        with self._within_transaction():
            if study_key := fields.get("study_key"):
                fields |= self._subject(study_key, fields)
            self._insert(self._head() or self._begin(), event, fields)

    def record_removal(self, event: Event, study_key: str, reason: str) -> None:
        """Record the removal of a study or report before it is begun; once, if it is repeated.

        Raises:
            sqlite3.OperationalError, OSError: see `record`.
        """
        with self._within_transaction():
            is_new = self._database.execute(
                "INSERT OR IGNORE INTO trail_removals VALUES (?, ?)", (study_key, event.value)
            ).rowcount
            if is_new:
                self.record(event, study_key=study_key, reason=reason)

    def forget_removals(self, study_key: str) -> None:
        """Forget that a study was removed: it gets files again; part of another's transaction."""
        self._database.execute("DELETE FROM trail_removals WHERE study_key = ?", (study_key,))

    def forget(self, study_key: str) -> None:
        """Forget a study of which nothing is left; its records stay."""
        self.forget_removals(study_key)
        self._database.execute("DELETE FROM trail_subjects WHERE study_key = ?", (study_key,))

    def flush(self) -> None:
        """Append all records to the files; it may be repeated after a crash at any point.

        Where database and files do not fit, a record says so, and the trail goes on.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now; call again later.
        """
        if self._end is not None and not self._waiting():
            return
        end = self._end
        if end is None:
            repair(self.folder)
            end = self._fit(end_of(self.folder))
        self._end = None  # until all is written
        waiting = self._waiting()
        if new := [one for one in waiting if one.sequence > end.sequence]:
            self._on_step(TrailStep.APPENDED, False)
            append(self.folder, [(one.file, one.line) for one in new])
            self._on_step(TrailStep.APPENDED, True)
            end = End(new[-1].sequence, digest(new[-1].line), new[-1].file)
        if waiting:
            self._database.execute(
                "DELETE FROM trail_records WHERE sequence <= ?", (waiting[-1].sequence,)
            )
        self._end = end

    def _subject(self, study_key: str, fields: Mapping[str, Any]) -> dict[str, str]:
        """Return the identifiers of a study; note them where the record has them."""
        # a header may hold half of a surrogate pair, which no database takes
        study_key = study_key.encode("utf-8", "replace").decode()
        given = {
            name: str(fields.get(name) or "").encode("utf-8", "replace").decode()
            for name in ("patient_id", "study_uid")
        }
        if all(given.values()):
            self._database.execute(
                "INSERT OR REPLACE INTO trail_subjects VALUES (?, ?, ?)",
                (study_key, *given.values()),
            )
            return {}
        row = self._database.execute(
            "SELECT patient_id, study_uid FROM trail_subjects WHERE study_key = ?", (study_key,)
        ).fetchone()
        return {} if row is None else dict(row)

    def _within_transaction(self) -> AbstractContextManager[None]:
        return nullcontext() if self._database.in_transaction else transaction(self._database)

    def _head(self) -> Head | None:
        query = "SELECT agent, sequence, hash, file, file_bytes FROM trail_head"
        row = self._database.execute(query).fetchone()
        return None if row is None else Head(row[0], End(*row[1:]))

    def _waiting(self) -> list[Waiting]:
        rows = self._database.execute(
            "SELECT sequence, file, line FROM trail_records ORDER BY sequence"
        )
        return [Waiting(*row) for row in rows]

    def _begin(self) -> Head:
        """Insert the head of a new database: that of the files, where there are any."""
        head = Head(agent_of(self.folder) or uuid.uuid4().hex, end_of(self.folder))
        self._set_head(head)
        if not head.end.sequence:
            return head
        reason = "the database is new; records that were only in the old one are lost"
        return self._insert(head, Event.CONTINUED, {"reason": reason})

    def _insert(
        self, head: Head, event: Event | str, fields: dict[str, Any], time: str = ""
    ) -> Head:
        """Insert a record after ``head``, and the head record of a file where one begins."""
        time = time or self._now().isoformat(timespec="milliseconds")
        end, name = head.end, file_name(head.end.sequence + 1, time)
        same_month = name.rpartition("-")[2] == end.file.rpartition("-")[2]
        if event != Event.FILE and not (same_month and end.file_bytes < self._max_file_bytes):
            identity = {
                "agent": head.agent,
                "host": socket.gethostname(),
                "program": f"overread-edge {version('overread')}",
            }
            begun = replace(head, end=replace(end, file=name, file_bytes=0))
            end = self._insert(begun, Event.FILE, identity, time).end
        record = TrailRecord(end.sequence + 1, time, str(event), fields, end.hash)
        line = record.line
        self._database.execute(
            "INSERT INTO trail_records VALUES (?, ?, ?)", (record.sequence, end.file, line)
        )
        size = end.file_bytes + len(line) + 1
        after = Head(head.agent, End(record.sequence, digest(line), end.file, size))
        self._set_head(after)
        return after

    def _set_head(self, head: Head) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO trail_head VALUES (1, ?, ?, ?, ?, ?)",
            (head.agent, *astuple(head.end)),
        )

    def _fit(self, end: End) -> End:
        """Let the waiting records continue the files, and return where these end.

        What does not fit stays as it is, so that a check finds it. A record says what it is.
        """
        with self._within_transaction():
            head, waiting = self._head(), self._waiting()
            if head is None:
                return end
            # what waits was never in the files: another in its place is of a newer database
            other = any(o.sequence == end.sequence and digest(o.line) != end.hash for o in waiting)
            if other or end.sequence > head.end.sequence:
                self._rechain(end, head, waiting)
            elif reason := _misfit(end, head.end, waiting):
                log.error("the trail was changed", folder=str(self.folder), what=reason)
                self._insert(head, Event.CONTINUED, {"reason": reason})
        return end

    def _rechain(self, end: End, head: Head, waiting: Sequence[Waiting]) -> None:
        """Continue after files that are newer than the database, such as a restored one."""
        known = set[str]()
        if waiting:
            known = {one.line for one in records_after(self.folder, waiting[0].sequence - 1)}
        self._database.execute("DELETE FROM trail_records")
        reason = "the database was older than the files"
        log.warning("trail continued", reason=reason)
        head = self._insert(replace(head, end=end), Event.CONTINUED, {"reason": reason})
        for row in waiting:
            record = TrailRecord.parse(row.line)
            if row.line not in known and record.event != Event.FILE:
                head = self._insert(head, record.event, dict(record.fields), record.time)


def _misfit(end: End, expected: End, waiting: Sequence[Waiting]) -> str:
    """Return why the files do not end where the waiting records continue; empty if they do.

    Also empty if that was recorded, and is still waiting.
    """
    after = [TrailRecord.parse(one.line) for one in waiting if one.sequence > end.sequence]
    if any(record.event == Event.CONTINUED for record in after):
        return ""
    sequence, previous = expected.sequence, expected.hash
    if after:
        sequence, previous = after[0].sequence - 1, after[0].previous
    if end.sequence < sequence:
        return f"records {end.sequence + 1} to {sequence} are missing in the files"
    return "" if end.hash == previous else f"record {end.sequence} in the files was changed"


def agent_of(folder: Path) -> str:
    """Return the identity of the agent in the newest file; empty if there is none."""
    for file in reversed(files_in(folder)):
        try:
            return str(TrailRecord.parse(next(lines_of(file)).text).fields["agent"])
        except (InvalidRecord, KeyError, StopIteration):
            continue
    return ""
