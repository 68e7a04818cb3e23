"""The durable state of the agent: one row a study, with its step of `edge.store.steps`.

Pending reads are in the same database (`edge.store.pending`), and begin to count in the same
transaction as REPORTED. So do the exports of a report to the targets (`edge.store.exports`). What
is done with a study is recorded in the audit trail (`edge.trail.store`), in the transaction of its
step.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from edge.access import whose
from edge.database import WrongStep, columns, file_identities, open_database, transaction
from edge.drift.store import DriftStore
from edge.errors import EdgeError
from edge.job import new_study_key
from edge.store.exports import ExportStore
from edge.store.parts import LaterPart, PartStore
from edge.store.pending import PendingStore
from edge.store.steps import BEFORE, Step, StepHook
from edge.trail.records import Event
from edge.trail.store import FOLDER, TrailStore

_RECORDED = {
    Step.CLAIMED: Event.RECEIVED,
    Step.REPORTED: Event.READ,
    Step.QUARANTINING: Event.REJECTED,
}
"""The steps that the audit trail has, with their event."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    id TEXT PRIMARY KEY,
    members TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    report_name TEXT NOT NULL UNIQUE,
    step TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    file TEXT NOT NULL DEFAULT '',
    created TEXT NOT NULL,
    updated TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_claim ON studies (members) WHERE step = 'claiming';
CREATE INDEX IF NOT EXISTS by_step ON studies (step);
"""


class InvalidDatabase(EdgeError):
    """The database of the state folder cannot be opened, or is not a database."""


@dataclass(frozen=True)
class Record:
    """The row of one study.

    Attributes:
        id: the random study key; its folder in ``work``, ``done`` or ``quarantine``.
        members: names in the inbox of all its files and folders, the study itself first.
        fingerprint: of names, sizes and times of its files when it was complete.
        report_name: its folder in the outbox, unique.
        attempts: readings that were started and not finished, the current one included.
        kind, reason, file: why it was quarantined; else empty.
        created, updated: wall-clock time of the claim and of the last step, ISO 8601.
    """

    id: str
    members: tuple[str, ...]
    fingerprint: str
    report_name: str
    step: Step
    attempts: int
    kind: str
    reason: str
    file: str
    created: str
    updated: str

    @property
    def name(self) -> str:
        """Name of its folder, or of its volume file, in the inbox."""
        return self.members[0]


class StudyStore:
    """The studies, their later ``parts``, ``pending`` reads, ``exports``, ``drift`` and ``trail``.

    It is a context manager. Several processes may open it at once. ``files`` are those that this
    one has open. ``targets`` are the names of those that get the objects of each report; without
    any, nothing is exported.

    Raises:
        InvalidDatabase: ``path`` cannot be opened, or is not a database.
    """

    def __init__(
        self, path: Path, on_step: StepHook | None = None, targets: Collection[str] = ()
    ) -> None:
        self._on_step = on_step or (lambda _step, _durable: None)
        with ExitStack() as opened:
            try:
                self._database = open_database(path)
                opened.callback(self._database.close)
                self._database.executescript(_SCHEMA)
                self.parts = PartStore(self._database)
                self.trail = TrailStore(self._database, path.parent / FOLDER, on_step=self._on_step)
                self.exports = ExportStore(self._database, self._on_step, targets, self.trail)
                self.pending = PendingStore(
                    self._database, self._on_step, self.trail, self.exports.add
                )
                self.drift = DriftStore(self._database)
                self.files = file_identities(path)
            except (sqlite3.Error, OSError) as error:
                allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=True)
                why = "" if allowed or not path.exists() else f"; {whose(path)}"
                raise InvalidDatabase(f"{path}: {error}{why}") from error
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checkpoint(self) -> None:
        """Write what is in the log into the file of the database, and empty the log."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def write_log(self) -> None:
        """Write what is in the log into the file of the database as far as no reader needs it."""
        self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def problem(self) -> str:
        """Check the whole database: return what is damaged or missing in it, empty for nothing."""
        try:
            (result,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                return str(result)
            return self.lacking()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            return str(error)

    def lacking(self) -> str:
        """Return which columns a database of another layout lacks, empty for none."""
        lacks = sorted(_own_columns() - columns(self._database))
        return f"lacks {', '.join(lacks)}" if lacks else ""

    def open_claim(
        self, members: tuple[str, ...], fingerprint: str, report_names: Iterator[str]
    ) -> Record | None:
        """Insert a study at step CLAIMING; return None if another process claims the same name.

        The first of ``report_names`` that is free becomes its folder in the outbox.
        """
        key, now = new_study_key(), _now()
        row = (key, json.dumps(members), fingerprint)
        self._on_step(Step.CLAIMING, False)
        try:
            with transaction(self._database):
                name = self._first_free(report_names)
                self._database.execute(
                    "INSERT INTO studies (id, members, fingerprint, report_name, step,"
                    " created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*row, name, Step.CLAIMING.value, now, now),
                )
        except sqlite3.IntegrityError:
            return None
        self._on_step(Step.CLAIMING, True)
        return self.get(key)

    def adopt(
        self,
        key: str,
        step: Step,
        members: tuple[str, ...],
        report_names: Iterator[str],
        reason: Mapping[str, str],
        versions: Iterable[int] = (),
    ) -> Record | None:
        """Insert a study that lies in the folders without a row, at this step.

        ``reason`` says why it was quarantined. ``versions`` of its report are out, and are exported
        again. Return None while another study of the same name is being claimed.
        """
        values = (key, json.dumps(members), "", step.value, _now(), _now())
        why = tuple(reason.get(name, "") for name in ("kind", "reason", "file"))
        try:
            with transaction(self._database):
                self._database.execute(
                    "INSERT INTO studies (id, members, fingerprint, step, created, updated,"
                    " report_name, kind, reason, file) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*values, self._first_free(report_names), *why),
                )
                facts = {"step": step.value, "name": members[0]}
                self.trail.record(Event.ADOPTED, study_key=key, **facts)
                self.exports.add(key, versions)
        except sqlite3.IntegrityError:
            return None
        return self.get(key)

    def has(self, key: str) -> bool:
        """Return whether there is a record of this study."""
        query = "SELECT 1 FROM studies WHERE id = ?"
        return self._database.execute(query, (key,)).fetchone() is not None

    def settle(
        self,
        key: str,
        step: Step,
        reason: Mapping[str, str] = MappingProxyType({}),
        versions: Iterable[int] = (),
    ) -> None:
        """Set a study to the step at which its files are, whatever step it was at.

        ``reason`` says why it was quarantined. A pending read that was saved is published, and
        ``versions`` of its report are exported.
        """
        why = tuple(reason.get(name, "") for name in ("kind", "reason", "file"))
        with transaction(self._database):
            self._database.execute(
                "UPDATE studies SET step = ?, updated = ?, kind = ?, reason = ?, file = ?"
                " WHERE id = ?",
                (step.value, _now(), *why, key),
            )
            self.pending.publish(key)
            self.trail.record(Event.ADOPTED, study_key=key, step=step.value)
            self.exports.add(key, versions)

    def keys(self) -> set[str]:
        """Return the keys of all studies."""
        return {row["id"] for row in self._database.execute("SELECT id FROM studies")}

    def ended(self, *steps: Step) -> list[tuple[str, str, str]]:
        """Return key, report name and time of the last step of the studies at these steps."""
        marks = ", ".join("?" * len(steps))
        rows = self._database.execute(
            f"SELECT id, report_name, updated FROM studies WHERE step IN ({marks})",
            [step.value for step in steps],
        )
        return [tuple(row) for row in rows]

    def forget(self, key: str) -> None:
        """Delete the row of a study of which no file is left, and what is known of its series."""
        with transaction(self._database):
            self._database.execute("DELETE FROM studies WHERE id = ?", (key,))
            self.parts.forget(key)
            self.trail.forget(key)
            self.exports.forget(key)

    def rename_report(self, key: str, report_names: Iterator[str]) -> Record:
        """Give the study the first of ``report_names`` that is free as its folder in the outbox."""
        with transaction(self._database):
            name = self._first_free(report_names)
            self._database.execute("UPDATE studies SET report_name = ? WHERE id = ?", (name, key))
        return self.get(key)

    def advance(
        self,
        key: str,
        step: Step,
        facts: Mapping[str, Any] = MappingProxyType({}),
        versions: Iterable[int] = (),
    ) -> Record:
        """Make a step durable and return the record after it.

        READING counts an attempt; CLAIMED after READING takes the attempt back. REPORTED also
        publishes the pending read, and begins the export of ``versions`` of the report. ``facts``
        are for the audit trail, which has CLAIMED after CLAIMING, and REPORTED.

        Raises:
            WrongStep: the study is not at a step before this one.
        """
        counted = {Step.READING: "attempts + 1", Step.CLAIMED: "max(attempts - 1, 0)"}
        change = f"attempts = {counted.get(step, 'attempts')}"
        also = partial(self.exports.add, key, versions)
        return self._update(key, step, change, (), also, facts=facts)

    def quarantine(
        self,
        key: str,
        kind: str,
        reason: str,
        file: str,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Record:
        """Make QUARANTINING durable, with the reason; ``facts`` are for the audit trail.

        Raises:
            WrongStep: the study is not being read.
        """
        texts = (kind, reason, file)
        values = tuple(text.encode("utf-8", "replace").decode() for text in texts)
        change = "kind = ?, reason = ?, file = ?"
        return self._update(key, Step.QUARANTINING, change, values, facts={**facts, "kind": kind})

    def begin_join(self, key: str, study_key: str, new_images: int) -> Record:
        """Make JOINING durable for a later part of the study ``study_key``.

        ``new_images`` are those that the study lacks: with none it is a repetition.

        Raises:
            WrongStep: the part is not at CLAIMED.
        """
        also = partial(self.parts.begin, key, study_key, new_images)
        return self._update(key, Step.JOINING, "attempts = 0", (), also)

    def add_changed(self, key: str, study_key: str, images: int, notes: Mapping[str, str]) -> None:
        """Note that ``key`` brought changed images of a study, once; ``notes`` are by study key."""
        with transaction(self._database):
            if sum(self.parts.add_note(*note) for note in notes.items()):
                self.trail.record(Event.CHANGED, study_key=study_key, part=key, images=images)

    def finish_repetition(self, key: str) -> Record:
        """End a part that brought nothing new, and is put away; its study stays as it is.

        Raises:
            WrongStep: the part is not at JOINING.
        """
        study_key = self.parts.study_of(key)
        record = partial(self.trail.record, Event.REPEATED, study_key=study_key, part=key)
        return self._update(key, Step.DONE, "attempts = 0", (), record)

    def finish_join(self, key: str, part: LaterPart) -> Record:
        """End a later part whose images are in place, and set its study back to CLAIMED.

        What is pending for the report of the study is deleted: it will be read again. Returns the
        record of the study.

        Raises:
            WrongStep: the part is not at JOINING, or its study at neither DONE nor QUARANTINED.
        """
        study_key = self.parts.study_of(key)

        def reopen() -> None:
            self.parts.finish(key, part)
            self.pending.delete(study_key)
            ends = (Step.DONE.value, Step.QUARANTINED.value)
            changed = self._database.execute(
                "UPDATE studies SET step = ?, updated = ?, attempts = 0, kind = '', reason = '',"
                " file = '' WHERE id = ? AND step IN (?, ?)",
                (Step.CLAIMED.value, _now(), study_key, *ends),
            ).rowcount
            if changed != 1:
                raise WrongStep(f"study {study_key} is at {self.get(study_key).step.value}")
            self.trail.forget_removals(study_key)
            facts = {"part": key, "version": part.version, "images": part.images}
            self.trail.record(Event.JOINED, study_key=study_key, **facts)

        self._update(key, Step.DONE, "attempts = 0", (), reopen)
        return self.get(study_key)

    def forget_exports(self, key: str) -> None:
        """Delete what is known of the export of a report that is gone."""
        with transaction(self._database):
            self.exports.forget(key)

    def forget_claim(self, key: str) -> None:
        """Delete a claim of which no file was moved; the study stays in the inbox."""
        self._database.execute(
            "DELETE FROM studies WHERE id = ? AND step = ?", (key, Step.CLAIMING.value)
        )

    def get(self, key: str) -> Record:
        """Return the record of one study.

        Raises:
            KeyError: there is none.
        """
        row = self._database.execute("SELECT * FROM studies WHERE id = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(f"no study {key} in the database")
        return _record(row)

    def at(self, *steps: Step) -> list[Record]:
        """Return the studies at these steps, oldest claim first."""
        marks = ", ".join("?" * len(steps))
        rows = self._database.execute(
            f"SELECT * FROM studies WHERE step IN ({marks}) ORDER BY rowid",
            [step.value for step in steps],
        )
        return [_record(row) for row in rows]

    def _first_free(self, report_names: Iterator[str]) -> str:
        query = "SELECT 1 FROM studies WHERE report_name = ?"
        database = self._database
        return next(n for n in report_names if database.execute(query, (n,)).fetchone() is None)

    def _update(
        self,
        key: str,
        step: Step,
        change: str,
        values: tuple[str, ...],
        also: Callable[[], None] = lambda: None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Record:
        before = [state.value for state in BEFORE[step]]
        self._on_step(step, False)
        with transaction(self._database):
            taken_back = step is Step.CLAIMED and self.get(key).step is Step.READING
            changed = self._database.execute(
                f"UPDATE studies SET step = ?, updated = ?, {change} WHERE id = ?"
                f" AND step IN ({', '.join('?' * len(before))})",
                (step.value, _now(), *values, key, *before),
            ).rowcount
            if changed != 1:
                raise WrongStep(f"study {key} is at {self.get(key).step.value}, expected {before}")
            also()
            if step is Step.REPORTED:
                self.pending.publish(key)
            if step is Step.QUARANTINING:
                self.pending.discard(key)
            if step in _RECORDED and not taken_back:
                self.trail.record(_RECORDED[step], study_key=key, **facts)
        self._on_step(step, True)
        return self.get(key)


def _own_columns() -> set[str]:
    """Return the columns of a database as this version of the program makes it."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_SCHEMA)
        PartStore(database)
        trail = TrailStore(database, Path(FOLDER))
        PendingStore(database, lambda _step, _durable: None, trail)
        ExportStore(database, lambda _step, _durable: None, (), trail)
        DriftStore(database)
        return columns(database)


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    members = tuple(json.loads(values.pop("members")))
    return Record(**values | {"members": members, "step": Step(values["step"])})


def _now() -> str:
    return datetime.now(UTC).isoformat()
