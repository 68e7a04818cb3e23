"""The durable state of the agent: one row a study, with its step of `edge.store.record`.

Pending reads are in the same database (`edge.store.pending`), and begin to count in the same
transaction as REPORTED. So does what the parts of the agent store (`edge.database`). What is
done with a study is recorded in the audit trail, in the transaction of its step.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
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
from edge.store.later_parts import LaterPart, PartStore
from edge.store.pending import PendingStore
from edge.store.record import BEFORE, Record, Step, record_of

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

NOT_REFUSED: Mapping[str, str] = {"kind": "", "reason": "", "file": ""}
"""The columns of a study that say why it was refused, where it was not."""


@dataclass(frozen=True)
class Change:
    """What becomes durable with a step of a study, in one transaction.

    Attributes:
        columns: of its row.
        facts: for the audit trail, which has CLAIMED after CLAIMING, REPORTED and QUARANTINING.
        versions: of its report that are out, and whose export begins.
        part: what it is to an earlier study, if it is a later part of one.
    """

    columns: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Iterable[int] = ()
    part: LaterPart | None = None


NO_CHANGE = Change()

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
        record = self._insert(new_study_key(), Step.CLAIMING, members, report_names)
        if record is not None:
            self._on_step(Step.CLAIMING, True)
        return record

    def adopt(
        self,
        key: str,
        step: Step,
        members: tuple[str, ...],
        report_names: Iterator[str],
        change: Change = NO_CHANGE,
    ) -> Record | None:
        """Insert a study that lies in the folders without a row, at this step.

        Return None while another study of the same name is being claimed.
        """
        return self._insert(key, step, members, report_names, change)

    def has(self, key: str) -> bool:
        """Return whether there is a record of this study."""
        query = "SELECT 1 FROM studies WHERE id = ?"
        return self.database.execute(query, (key,)).fetchone() is not None

    def settle(self, key: str, step: Step, change: Change) -> None:
        """Set a study to the step at which its files are, whatever step it was at.

        A pending read that was saved is published.
        """
        with transaction(self.database):
            self._set(key, step, {**NOT_REFUSED, **change.columns})
            self.pending.publish(key)
            self.trail.record(Event.ADOPTED, study_key=key, step=step.value)
            self._reported(key, change.versions)

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

    def advance(self, key: str, step: Step, change: Change = NO_CHANGE) -> Record:
        """Make a step durable, with all that changes with it; return the record after it.

        READING counts an attempt; CLAIMED after READING takes the attempt back. REPORTED publishes
        the pending read, QUARANTINING discards it. A later part whose images are in place (DONE)
        sets its study back to CLAIMED; what is pending for the report that is out stays until its
        next version replaces it.

        Raises:
            WrongStep: the study, or that of the part, is not at a step before this one.
        """
        with durable(self.database, self._on_step, step):
            now = self.get(key)
            if now.step not in BEFORE[step]:
                expected = [state.value for state in BEFORE[step]]
                raise WrongStep(f"study {key} is at {now.step.value}, expected {expected}")
            counted = {Step.READING: now.attempts + 1, Step.CLAIMED: max(now.attempts - 1, 0)}
            self._set(key, step, {"attempts": counted.get(step, now.attempts), **change.columns})
            if change.part:
                self._note_part(key, step, change.part)
            self._reported(key, change.versions)
            if step is Step.REPORTED:
                self.pending.publish(key)
            if step is Step.QUARANTINING:
                self.pending.discard(change.part.study_key if change.part else key)
            taken_back = step is Step.CLAIMED and now.step is Step.READING
            if step in _RECORDED and not taken_back:
                self.trail.record(_RECORDED[step], study_key=key, **change.facts)
        return self.get(key)

    def _note_part(self, key: str, step: Step, part: LaterPart) -> None:
        """Note a later part; where it has joined its study, that is read again."""
        self.parts.put(key, part)
        if step is Step.DONE and not part.version:
            self.trail.record(Event.REPEATED, study_key=part.study_key, part=key)
        elif step is Step.DONE:
            if (at := self.get(part.study_key).step) not in (Step.DONE, Step.QUARANTINED):
                raise WrongStep(f"study {part.study_key} is at {at.value}")
            self._set(part.study_key, Step.CLAIMED, {"attempts": 0, **NOT_REFUSED})
            self.trail.forget_removals(part.study_key)
            facts = {"part": key, "version": part.version, "images": part.images}
            self.trail.record(Event.JOINED, study_key=part.study_key, **facts)

    def add_changed(self, key: str, study_key: str, images: int, notes: Mapping[str, str]) -> None:
        """Note that ``key`` brought changed images of a study, once; ``notes`` are by study key."""
        with transaction(self.database):
            if sum(self.parts.add_note(*note) for note in notes.items()):
                self.trail.record(Event.CHANGED, study_key=study_key, part=key, images=images)

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
        members: tuple[str, ...],
        report_names: Iterator[str],
        adopted: Change | None = None,
    ) -> Record | None:
        """Insert a study; return None while another of the same name is being claimed."""
        try:
            with transaction(self.database):
                row = {
                    "id": key,
                    "members": json.dumps(members),
                    "report_name": self._first_free(report_names),
                    "step": step.value,
                    "created": _now(),
                    "updated": _now(),
                    **(adopted.columns if adopted else {}),
                }
                query = f"INSERT INTO studies ({', '.join(row)}) VALUES ({_marks(row)})"
                self.database.execute(query, [*row.values()])
                if adopted:
                    facts = {"step": step.value, "name": members[0]}
                    self.trail.record(Event.ADOPTED, study_key=key, **facts)
                    self._reported(key, adopted.versions)
        except sqlite3.IntegrityError:
            return None
        return self.get(key)

    def _set(self, key: str, step: Step, changes: Mapping[str, object]) -> None:
        """Set step and other columns of a study; part of an open transaction."""
        row = {**changes, "step": step.value, "updated": _now()}
        for name in changes.keys() & NOT_REFUSED.keys():  # the name of a file may be no UTF-8
            row[name] = str(row[name]).encode("utf-8", "replace").decode()
        columns = ", ".join(f"{column} = ?" for column in row)
        self.database.execute(f"UPDATE studies SET {columns} WHERE id = ?", [*row.values(), key])


def all_migrations(schema: Schema) -> tuple[Migration, ...]:
    """Return the migrations of the core and of all parts, in the order of their numbers."""
    return tuple(sorted((*MIGRATIONS, *schema.migrations), key=lambda one: one.number))


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _now() -> str:
    return datetime.now(UTC).isoformat()
