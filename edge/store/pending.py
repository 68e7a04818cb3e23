"""Pending reads as rows: second readings that did not arrive by the deadline.

They are rows in the database of `edge.store.studies`; what their bytes mean, `edge.amend.persist`
knows. A pending read is saved before its report is written. It becomes valid in the transaction
that marks the report as written.

    SAVED -> PENDING <-> AMENDING -> CLOSED

The wall clock is not used: amendments are ordered by version, and age is the time in which an agent
ran.
"""

import math
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from edge.audit import AuditTrail, Event
from edge.database import StepHook, WrongStep, durable, transaction


class PendingStep(Enum):
    """A durable step of a pending read."""

    SAVED = "saved"  # ROIs and context are stored; the report may not be out yet
    RETRYING = "retrying"  # one more attempt is counted; the row stays PENDING
    AMENDING = "amending"  # new verdicts are stored; the new version is not noted as out
    PENDING = "pending"  # the report is out in this version, and verdicts are missing
    CLOSED = "closed"  # the last version is out; nothing is stored any more


@dataclass(frozen=True)
class PendingRead:
    """The missing second readings of one report: its row but for the context.

    Attributes:
        version: of the report that is out; in AMENDING the next one is due or being written.
        gives_up: whether the version being written is the last though verdicts are missing.
        attempts: since the last verdict came.
        age_s: seconds for which agents have run since.
        reason: why verdicts are missing.
        undecided: whether the ROI of an uncertain candidate has no verdict.
        uncharacterized: whether the ROI of a finding of the edge has no verdict.
    """

    study_key: str
    step: PendingStep
    version: int
    gives_up: bool
    attempts: int
    age_s: float
    reason: str
    undecided: bool
    uncharacterized: bool


class RoiRow(NamedTuple):
    """An ROI without a verdict; the lowest ``priority`` is the most valuable one."""

    roi_id: int
    priority: int
    roi: bytes


class VerdictRow(NamedTuple):
    """A verdict, and the shape ``(z, y, x)`` of its mask; 0 without one."""

    roi_id: int
    verdict: bytes
    z: int
    y: int
    x: int


CHARACTERIZATION = 1_000_000
"""From this priority on an ROI is that of a finding of the edge: it changes no decision."""
_OPEN = (
    "FROM pending_rois WHERE study_key = {} AND roi_id NOT IN"
    " (SELECT roi_id FROM pending_verdicts WHERE study_key = {})"
)
_OPEN_OF_ONE = f"{_OPEN.format('?1', '?1')} AND priority < ?2 ORDER BY priority"
"""The ROIs without a verdict, most valuable first."""
_OPEN_OF_ANY = _OPEN.format("pending.study_key", "pending.study_key")
_READ = (
    "SELECT study_key, step, version, gives_up, attempts, age_s, reason,"
    f" EXISTS (SELECT 1 {_OPEN_OF_ANY} AND priority < {CHARACTERIZATION}) AS undecided,"
    f" EXISTS (SELECT 1 {_OPEN_OF_ANY} AND priority >= {CHARACTERIZATION}) AS uncharacterized"
    " FROM pending"
)
SMALL = 6
"""zlib level of what was stored fast: 3 ms an ROI of 48 voxels a side."""


TABLES = """
CREATE TABLE IF NOT EXISTS pending (
    study_key TEXT PRIMARY KEY,
    step TEXT NOT NULL,
    version INTEGER NOT NULL,
    gives_up INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    age_s REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL,
    context BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS pending_rois (
    study_key TEXT NOT NULL REFERENCES pending ON DELETE CASCADE,
    roi_id INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    roi BLOB NOT NULL,
    compressed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study_key, roi_id)
);
CREATE INDEX IF NOT EXISTS uncompressed ON pending_rois (compressed) WHERE compressed = 0;
CREATE TABLE IF NOT EXISTS pending_verdicts (
    study_key TEXT NOT NULL REFERENCES pending ON DELETE CASCADE,
    roi_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    verdict BLOB NOT NULL,
    z INTEGER NOT NULL,
    y INTEGER NOT NULL,
    x INTEGER NOT NULL,
    PRIMARY KEY (study_key, roi_id)
);
"""


class PendingStore:
    """The pending reads in an open database.

    ``on_step`` is called with every durable step; ``trail`` gets every new version. ``export``
    begins the export of versions of a report, in the transaction that has them out.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        on_step: StepHook,
        trail: AuditTrail,
        export: Callable[[str, Iterable[int]], None],
    ) -> None:
        self._database, self._durable = database, partial(durable, database, on_step)
        self._trail, self._export = trail, export

    def save(
        self,
        key: str,
        version: int,
        reason: str,
        context: bytes,
        rois: Iterable[RoiRow],
        verdicts: Iterable[VerdictRow] = (),
    ) -> None:
        """Save what is pending for this version of a report, which is about to go out.

        ``verdicts`` are those that came in time, ``reason`` says why the others did not.
        """
        with self._durable(PendingStep.SAVED):
            # of an earlier attempt, of a version with fewer images, or left by a person
            for table in ("pending", "pending_rois", "pending_verdicts"):
                self._database.execute(f"DELETE FROM {table} WHERE study_key = ?", (key,))
            query = "INSERT INTO pending (study_key, step, version, reason, context) VALUES"
            row = (key, PendingStep.SAVED.value, version, reason, context)
            self._database.execute(f"{query} (?, ?, ?, ?, ?)", row)
            self._database.executemany(
                "INSERT INTO pending_rois (study_key, roi_id, priority, roi) VALUES (?, ?, ?, ?)",
                [(key, *row) for row in rois],
            )
            self._insert(key, version, verdicts)

    def delete(self, key: str) -> None:
        """Delete what is pending for a study that was read again, and has nothing pending."""
        self._database.execute("DELETE FROM pending WHERE study_key = ?", (key,))

    def publish(self, key: str) -> None:
        """Mark the report as written; part of the transaction that marks it for the study."""
        self._database.execute(
            "UPDATE pending SET step = ? WHERE study_key = ? AND step = ?",
            (PendingStep.PENDING.value, key, PendingStep.SAVED.value),
        )

    def discard(self, key: str) -> None:
        """Delete the rows of a report that was not written; part of another's transaction."""
        self._database.execute(
            "DELETE FROM pending WHERE study_key = ? AND step = ?", (key, PendingStep.SAVED.value)
        )

    def follow(self, read: PendingRead, version: int, context: bytes) -> None:
        """Note that a version is out that has no new verdict; those stored count from the next."""
        query = "UPDATE pending_verdicts SET version = ? WHERE study_key = ? AND version > ?"
        with transaction(self._database):
            self._move(read, version=version, context=context)
            self._database.execute(query, (version + 1, read.study_key, read.version))

    def at(self, *steps: PendingStep) -> list[PendingRead]:
        """Return the pending reads at these steps.

        Those with an uncertain candidate come first, then fewest attempts, then the oldest.
        """
        rows = self._database.execute(
            f"{_READ} WHERE step IN ({', '.join('?' * len(steps))})"
            " ORDER BY undecided DESC, attempts, rowid",
            [step.value for step in steps],
        )
        return [_pending_read(row) for row in rows]

    def get(self, key: str) -> PendingRead:
        """Return the pending read of one study.

        Raises:
            KeyError: nothing is pending.
        """
        row = self._database.execute(f"{_READ} WHERE study_key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(f"no read is pending for study {key}")
        return _pending_read(row)

    def has(self, key: str) -> bool:
        """Return whether there is a row of this study."""
        return key in self.keys()

    def keys(self) -> set[str]:
        """Return the keys of all studies with a row here."""
        return {row["study_key"] for row in self._database.execute("SELECT study_key FROM pending")}

    def context(self, key: str) -> bytes:
        """Return the amendment context of the report that is out."""
        query = "SELECT context FROM pending WHERE study_key = ?"
        return bytes(self._database.execute(query, (key,)).fetchone()["context"])

    def rois(self, key: str, below: float = math.inf) -> list[bytes]:
        """Return the ROIs without a verdict, most valuable first, of priorities ``below`` it."""
        rows = self._database.execute(f"SELECT roi {_OPEN_OF_ONE}", (key, below))
        return [row["roi"] for row in rows]

    def open_rois(self, key: str) -> tuple[int, ...]:
        """Return the identifiers of the ROIs without a verdict, most valuable first."""
        rows = self._database.execute(f"SELECT roi_id {_OPEN_OF_ONE}", (key, math.inf))
        return tuple(row["roi_id"] for row in rows)

    def roi(self, key: str, roi_id: int) -> bytes | None:
        """Return one of the ROIs; None if it is not stored."""
        query = "SELECT roi FROM pending_rois WHERE study_key = ? AND roi_id = ?"
        row = self._database.execute(query, (key, roi_id)).fetchone()
        return None if row is None else row["roi"]

    def verdicts(self, key: str, version: int) -> list[VerdictRow]:
        """Return all verdicts that ``version`` of the report has."""
        rows = self._database.execute(
            "SELECT roi_id, verdict, z, y, x FROM pending_verdicts"
            " WHERE study_key = ? AND version <= ? ORDER BY roi_id",
            (key, version),
        )
        return [VerdictRow(*row) for row in rows]

    def advance(
        self,
        read: PendingRead,
        step: PendingStep,
        *,
        verdicts: Iterable[VerdictRow] = (),
        below: float = math.inf,
        facts: Mapping[str, Any] = MappingProxyType({}),
        exported: int = 0,
        **columns: object,
    ) -> PendingRead:
        """Make a step durable, with what else is said of it; return the read after it.

        RETRYING leaves the row at its step. AMENDING adds ``verdicts`` for the next version; an
        ROI keeps its first one, and those with a priority that is not ``below`` are given up.
        PENDING and CLOSED have that version out, the report's version ``exported``; ``facts`` are
        for the audit trail.

        Raises:
            WrongStep: another process has changed the row.
        """
        key = read.study_key
        if step is not PendingStep.RETRYING:
            columns["step"] = step.value
        is_out = step in (PendingStep.PENDING, PendingStep.CLOSED)
        with self._durable(step):
            self._move(read, **columns, version=read.version + is_out)
            self._insert(key, read.version + 1, verdicts)
            # answered ROIs are not needed any more once their version is out
            self._database.execute(
                "DELETE FROM pending_rois WHERE study_key = ?1 AND (priority >= ?2 OR ?3 AND roi_id"
                " IN (SELECT roi_id FROM pending_verdicts WHERE study_key = ?1))",
                (key, below, is_out),
            )
            if is_out:
                self._trail.record(Event.AMENDED, study_key=key, **facts)
                self._export(key, (exported,))
            after = self.get(key)
            if step is PendingStep.CLOSED:
                self.delete(key)  # and so its ROIs and verdicts
        return after

    def add_age(self, seconds: float) -> None:
        """Make every pending read older by ``seconds``."""
        self._database.execute("UPDATE pending SET age_s = age_s + ?", (seconds,))

    def backlog(self) -> tuple[int, float]:
        """Return how many reports have a pending read, and the greatest age in seconds."""
        row = self._database.execute(
            "SELECT count(*), coalesce(max(age_s), 0.0) FROM pending WHERE step != ?",
            (PendingStep.SAVED.value,),
        ).fetchone()
        return row[0], row[1]

    def used_bytes(self) -> int:
        """Return the used size of the database, nearly all of it pending reads."""
        pages, free, page_bytes = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    def compress_one(self) -> bool:
        """Compress one ROI that was stored fast; return whether there was one.

        A damaged one stays as it is: the retry detects it, and suspends the pending read.
        """
        row = self._database.execute(
            "SELECT study_key, roi_id, roi FROM pending_rois WHERE compressed = 0 LIMIT 1"
        ).fetchone()
        if row is None:
            return False
        data = row["roi"]
        with suppress(zlib.error):
            data = zlib.compress(zlib.decompress(data), SMALL)
        self._database.execute(
            "UPDATE pending_rois SET roi = ?, compressed = 1 WHERE study_key = ? AND roi_id = ?",
            (data, row["study_key"], row["roi_id"]),
        )
        return True

    def _insert(self, key: str, version: int, verdicts: Iterable[VerdictRow]) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO pending_verdicts"
            " (study_key, version, roi_id, verdict, z, y, x) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(key, version, *row) for row in verdicts],
        )

    def _move(self, read: PendingRead, **changes: object) -> None:
        """Change columns, unless the row is not at the step and version of ``read`` any more."""
        columns = ", ".join(f"{column} = ?" for column in changes)
        changed = self._database.execute(
            f"UPDATE pending SET {columns} WHERE study_key = ? AND step = ? AND version = ?",
            (*changes.values(), read.study_key, read.step.value, read.version),
        ).rowcount
        if changed != 1:
            raise WrongStep(f"another process has changed {read}")


def _pending_read(row: sqlite3.Row) -> PendingRead:
    flags = {name: bool(row[name]) for name in ("gives_up", "undecided", "uncharacterized")}
    return PendingRead(**{**row, **flags, "step": PendingStep(row["step"])})
