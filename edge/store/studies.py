"""The durable state of the agent: one row a study, with its step of `edge.store.steps`.

Pending reads are in the same database (`edge.store.pending`), and begin to count in the same
transaction as REPORTED. So does what the parts of the agent store (`edge.database`). What is
done with a study is recorded in the audit trail, in the transaction of its step.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from edge.audit import Event
from edge.database import (
    Migration,
    Schema,
    StepHook,
    WrongStep,
    durable,
    files_of,
    is_empty,
    make_tables,
    naming,
    open_database,
    problem_in,
    require_current,
    transaction,
)
from edge.job import new_study_key
from edge.store import later_parts, pending
from edge.store.later_parts import PartStore
from edge.store.pending import PendingStore
from edge.store.record import Record, record_of
from edge.store.steps import BEFORE, Step

_RECORDED = {
    Step.CLAIMED: Event.RECEIVED,
    Step.REPORTED: Event.READ,
    Step.QUARANTINING: Event.REJECTED,
}
"""The steps that the audit trail has, with their event."""

_TABLES = """
CREATE TABLE IF NOT EXISTS studies (
    id TEXT PRIMARY KEY,
    members TEXT NOT NULL,
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

MIGRATIONS = (Migration(1, _TABLES + later_parts.TABLES + pending.TABLES),)
"""Those of the core."""

E = TypeVar("E")


class StudyStore:
    """The studies, their later ``parts``, ``pending`` reads, ``extensions`` and ``trail``.

    It is a context manager. Several processes may open it at once. ``files`` are those that this
    one has open. An empty database gets its tables.

    Raises:
        InvalidDatabase: ``path`` cannot be opened, or is not a database.
        OtherVersion: it is of another version of the program.
    """

    def __init__(
        self, path: Path, schema: Schema, on_step: StepHook = lambda _step, _durable: None
    ) -> None:
        self._on_step = on_step
        with ExitStack() as opened, naming(path):
            self.database = open_database(path)
            opened.callback(self.database.close)
            migrations = all_migrations(schema)
            if is_empty(self.database):
                make_tables(self.database, migrations)
            require_current(self.database, path, migrations)
            self.parts = PartStore(self.database)
            self.trail = schema.audit(self.database, on_step)
            self.extensions = tuple(
                extend(self.database, self.trail, on_step) for extend in schema.extensions
            )
            self.pending = PendingStore(self.database, on_step, self.trail, self._reported)
            self.files = files_of(path)
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_log(self) -> None:
        """Write what is in the log into the file of the database as far as no reader needs it."""
        self.database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def problem(self) -> str:
        """Check the whole database: return what is damaged in it, empty for nothing."""
        return problem_in(self.database)

    def open_claim(self, members: tuple[str, ...], report_names: Iterator[str]) -> Record | None:
        """Insert a study at step CLAIMING; return None if another process claims the same name.

        The first of ``report_names`` that is free becomes its folder in the outbox.
        """
        self._on_step(Step.CLAIMING, False)
        row = {"members": json.dumps(members)}
        record = self._insert(new_study_key(), Step.CLAIMING, report_names, row)
        if record is not None:
            self._on_step(Step.CLAIMING, True)
        return record

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

        def also() -> None:
            facts = {"step": step.value, "name": members[0]}
            self.trail.record(Event.ADOPTED, study_key=key, **facts)
            self._reported(key, versions)

        row = {"members": json.dumps(members), **reason}
        return self._insert(key, step, report_names, row, also)

    def has(self, key: str) -> bool:
        """Return whether there is a record of this study."""
        query = "SELECT 1 FROM studies WHERE id = ?"
        return self.database.execute(query, (key,)).fetchone() is not None

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
        with transaction(self.database):
            self._set(key, step, {"kind": "", "reason": "", "file": "", **reason})
            self.pending.publish(key)
            self.trail.record(Event.ADOPTED, study_key=key, step=step.value)
            self._reported(key, versions)

    def keys(self) -> set[str]:
        """Return the keys of all studies."""
        return {row["id"] for row in self.database.execute("SELECT id FROM studies")}

    def ended(self, *steps: Step) -> list[tuple[str, str, str]]:
        """Return key, report and time of the last step of the studies at these steps.

        It takes a fifth of the time of `at`: retention looks at all studies once a minute.
        """
        query = f"SELECT id, report_name, updated FROM studies WHERE step IN ({_marks(steps)})"
        rows = self.database.execute(query, [step.value for step in steps])
        return [tuple(row) for row in rows]

    def forget(self, key: str) -> None:
        """Delete the row of a study of which no file is left, and what is known of its series."""
        with transaction(self.database):
            self.database.execute("DELETE FROM studies WHERE id = ?", (key,))
            self.parts.forget(key)
            self.trail.forget(key)
            for one in self.extensions:
                one.forget_report(key)

    def rename_report(self, key: str, report_names: Iterator[str]) -> Record:
        """Give the study the first of ``report_names`` that is free as its folder in the outbox."""
        with transaction(self.database):
            name = self._first_free(report_names)
            self.database.execute("UPDATE studies SET report_name = ? WHERE id = ?", (name, key))
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
        also = partial(self._reported, key, versions)
        return self._update(key, step, {}, also, facts)

    def quarantine(
        self,
        key: str,
        kind: str,
        reason: str,
        file: str,
        facts: Mapping[str, Any] = MappingProxyType({}),
        versions: Iterable[int] = (),
    ) -> Record:
        """Make QUARANTINING durable, with the reason; ``facts`` are for the audit trail.

        The export of ``versions`` of the report begins.

        Raises:
            WrongStep: the study is not being read.
        """
        texts = {"kind": kind, "reason": reason, "file": file}
        why = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
        also = partial(self._reported, key, versions)
        return self._update(key, Step.QUARANTINING, why, also, {**facts, "kind": kind})

    def begin_join(self, key: str, study_key: str, new_images: int) -> Record:
        """Make JOINING durable for a later part of the study ``study_key``.

        ``new_images`` are those that the study lacks: with none it is a repetition.

        Raises:
            WrongStep: the part is not at CLAIMED.
        """
        also = partial(self.parts.put, key, study_key, 0, new_images)
        return self._update(key, Step.JOINING, {"attempts": 0}, also)

    def add_changed(self, key: str, study_key: str, images: int, notes: Mapping[str, str]) -> None:
        """Note that ``key`` brought changed images of a study, once; ``notes`` are by study key."""
        with transaction(self.database):
            if sum(self.parts.add_note(*note) for note in notes.items()):
                self.trail.record(Event.CHANGED, study_key=study_key, part=key, images=images)

    def finish_repetition(self, key: str) -> Record:
        """End a part that brought nothing new, and is put away; its study stays as it is.

        Raises:
            WrongStep: the part is not at JOINING.
        """
        study_key, _ = self.parts.part(key)
        record = partial(self.trail.record, Event.REPEATED, study_key=study_key, part=key)
        return self._update(key, Step.DONE, {"attempts": 0}, record)

    def finish_join(self, key: str, version: int, images: int) -> Record:
        """End a later part whose images are in place, and set its study back to CLAIMED.

        ``version`` is that of the report with its ``images``. What is pending for the report that
        is out stays until that version replaces it. Returns the record of the study.

        Raises:
            WrongStep: the part is not at JOINING, or its study at neither DONE nor QUARANTINED.
        """
        study_key, _ = self.parts.part(key)

        def reopen() -> None:
            self.parts.put(key, study_key, version, images)
            if (at := self.get(study_key).step) not in (Step.DONE, Step.QUARANTINED):
                raise WrongStep(f"study {study_key} is at {at.value}")
            cleared = {"attempts": 0, "kind": "", "reason": "", "file": ""}
            self._set(study_key, Step.CLAIMED, cleared)
            self.trail.forget_removals(study_key)
            facts = {"part": key, "version": version, "images": images}
            self.trail.record(Event.JOINED, study_key=study_key, **facts)

        self._update(key, Step.DONE, {"attempts": 0}, reopen)
        return self.get(study_key)

    def set_apart(self, key: str, images: int, why: Mapping[str, str], note: str) -> None:
        """Make QUARANTINING durable for a later part with which its study cannot be read.

        ``why`` are columns of its row. ``note`` is for the report of the study, which stays at its
        step.
        """
        study_key, _ = self.parts.part(key)

        def also() -> None:
            self.parts.put(key, study_key, 0, images)
            self.parts.add_note(study_key, note)
            self.pending.discard(study_key)

        self._update(key, Step.QUARANTINING, why, also, {"kind": why["kind"]})

    def forget_report(self, key: str) -> None:
        """Delete what the extensions know of a report that is gone."""
        with transaction(self.database):
            for one in self.extensions:
                one.forget_report(key)

    def extension(self, kind: type[E]) -> E:
        """Return the extension of this kind.

        Raises:
            LookupError: there is none; the schema lacks it.
        """
        for one in self.extensions:
            if isinstance(one, kind):
                return one
        raise LookupError(f"the schema has no {kind.__name__}")

    def held(self, *, studies: bool = False) -> set[str]:
        """Return the keys of the studies whose reports, or images, an extension still needs."""
        return set[str]().union(*(one.held(studies=studies) for one in self.extensions))

    def _reported(self, key: str, versions: Iterable[int]) -> None:
        """Tell the extensions which versions are out; part of another's transaction."""
        known = tuple(versions)
        for one in self.extensions if known else ():
            one.reported(key, known)

    def forget_claim(self, key: str) -> None:
        """Delete a claim of which no file was moved; the study stays in the inbox."""
        self.database.execute(
            "DELETE FROM studies WHERE id = ? AND step = ?", (key, Step.CLAIMING.value)
        )

    def get(self, key: str) -> Record:
        """Return the record of one study.

        Raises:
            KeyError: there is none.
        """
        row = self.database.execute("SELECT * FROM studies WHERE id = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(f"no study {key} in the database")
        return record_of(row)

    def at(self, *steps: Step) -> list[Record]:
        """Return the studies at these steps, oldest claim first."""
        rows = self.database.execute(
            f"SELECT * FROM studies WHERE step IN ({_marks(steps)}) ORDER BY rowid",
            [step.value for step in steps],
        )
        return [record_of(row) for row in rows]

    def _first_free(self, report_names: Iterator[str]) -> str:
        query = "SELECT 1 FROM studies WHERE report_name = ?"
        database = self.database
        return next(n for n in report_names if database.execute(query, (n,)).fetchone() is None)

    def _insert(
        self,
        key: str,
        step: Step,
        report_names: Iterator[str],
        values: Mapping[str, str],
        also: Callable[[], None] = lambda: None,
    ) -> Record | None:
        """Insert a study; return None while another of the same name is being claimed."""
        try:
            with transaction(self.database):
                row = {
                    "id": key,
                    "step": step.value,
                    "report_name": self._first_free(report_names),
                    "created": _now(),
                    "updated": _now(),
                    **values,
                }
                columns, marks = ", ".join(row), _marks(row)
                query = f"INSERT INTO studies ({columns}) VALUES ({marks})"
                self.database.execute(query, [*row.values()])
                also()
        except sqlite3.IntegrityError:
            return None
        return self.get(key)

    def _update(
        self,
        key: str,
        step: Step,
        changes: Mapping[str, object],
        also: Callable[[], None] = lambda: None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Record:
        """Make a step durable, with these ``changes`` of columns and what is done ``also``."""
        with durable(self.database, self._on_step, step):
            now = self.get(key)
            if now.step not in BEFORE[step]:
                expected = [state.value for state in BEFORE[step]]
                raise WrongStep(f"study {key} is at {now.step.value}, expected {expected}")
            counted = {Step.READING: now.attempts + 1, Step.CLAIMED: max(now.attempts - 1, 0)}
            self._set(key, step, {"attempts": counted.get(step, now.attempts), **changes})
            also()
            if step is Step.REPORTED:
                self.pending.publish(key)
            if step is Step.QUARANTINING:
                self.pending.discard(key)
            taken_back = step is Step.CLAIMED and now.step is Step.READING
            if step in _RECORDED and not taken_back:
                self.trail.record(_RECORDED[step], study_key=key, **facts)
        return self.get(key)

    def _set(self, key: str, step: Step, changes: Mapping[str, object]) -> None:
        """Set step and other columns of a study; part of an open transaction."""
        row = {**changes, "step": step.value, "updated": _now()}
        columns = ", ".join(f"{column} = ?" for column in row)
        self.database.execute(f"UPDATE studies SET {columns} WHERE id = ?", [*row.values(), key])


def all_migrations(schema: Schema) -> tuple[Migration, ...]:
    """Return the migrations of the core and of all parts, in the order of their numbers."""
    return tuple(sorted((*MIGRATIONS, *schema.migrations), key=lambda one: one.number))


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _now() -> str:
    return datetime.now(UTC).isoformat()
