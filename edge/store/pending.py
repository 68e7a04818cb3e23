"""Pending reads: second readings that did not arrive by the deadline.

They are rows in the database of `edge.store.studies`. A pending read is saved before its report is
written. It becomes valid in the transaction that marks the report as written.

    SAVED -> PENDING <-> AMENDING -> CLOSED

The wall clock is not used: amendments are ordered by version, and age is the time in which an agent
ran.
"""

import math
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any

from edge.audit import AuditTrail, Event
from edge.database import StepHook, WrongStep, durable, transaction
from edge.escalation.rois import EscalationResult
from edge.report.model import Report
from edge.store.amendment import AmendmentContext
from protos import overread_pb2 as pb
from protos.codec import (
    decode_response,
    decode_roi,
    encode_response,
    encode_roi,
    pack_mask,
    unpack_mask,
)
from protos.messages import Roi, Verdict


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
FAST, SMALL = 0, 6
"""zlib levels: 0.1 ms an ROI of 48 voxels a side, while the report waits; and 3 ms, later."""


def _pack_roi(roi: Roi) -> bytes:
    """Pack an ROI as it crosses the wire, hardly compressed, because the report waits for it.

    The checksum of the wire is stored with it, so that an ROI that the disk damaged is detected.
    """
    return zlib.compress(encode_roi(roi).SerializeToString(), FAST)


def _unpack_roi(data: bytes) -> Roi:
    """Unpack what `_pack_roi` packed; raise ChecksumMismatch if its voxels are damaged."""
    return decode_roi(pb.ReadRequest.FromString(zlib.decompress(data)).roi)


def _unpack_verdict(data: bytes) -> Verdict:
    verdict = decode_response(pb.ReadResponse.FromString(data))
    if not isinstance(verdict, Verdict):
        raise TypeError(f"expected a stored verdict, got {verdict!r}")
    return verdict


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
        export: Callable[[str, Iterable[int]], None] = lambda _key, _versions: None,
    ) -> None:
        self._database, self._durable = database, partial(durable, database, on_step)
        self._trail, self._export = trail, export

    def save(
        self, context: AmendmentContext, answers: EscalationResult, rois: Sequence[Roi]
    ) -> None:
        """Save what is pending for a report that is about to go out.

        ``answers`` are those that came in time, ``rois`` the pending ROIs, most valuable first,
        those to characterize last. Nothing is saved if there are none.
        """
        key = context.report.study_key
        if not rois:
            self.delete(key)
            return
        head = (key, PendingStep.SAVED.value, context.report.version, answers.reason)
        count = sum(roi.roi_id not in context.plan.characterize for roi in rois)
        with self._durable(PendingStep.SAVED):
            self.delete(key)  # of an earlier attempt, or of a version with fewer images
            for table in ("pending_rois", "pending_verdicts"):  # left if a person deleted rows
                self._database.execute(f"DELETE FROM {table} WHERE study_key = ?", (key,))
            query = "INSERT INTO pending (study_key, step, version, reason, context) VALUES"
            self._database.execute(f"{query} (?, ?, ?, ?, ?)", (*head, context.to_bytes()))
            self._database.executemany(
                "INSERT INTO pending_rois (study_key, roi_id, priority, roi) VALUES (?, ?, ?, ?)",
                [
                    (key, roi.roi_id, i if i < count else CHARACTERIZATION + i, _pack_roi(roi))
                    for i, roi in enumerate(rois)
                ],
            )
            self._insert(key, context.report.version, answers)

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

    def delete(self, key: str) -> None:
        """Delete all rows of a study that was read again; part of another's transaction."""
        self._database.execute("DELETE FROM pending WHERE study_key = ?", (key,))

    def follow(self, key: str, report: Report) -> None:
        """Note that a version is out that differs only in its changes and in what was not read."""
        if not self.has(key) or (read := self.get(key)).version >= report.version:
            return
        out = {n: getattr(report, n) for n in ("version", "changes", "other_series")}
        was = self.context(key)
        context = replace(was, report=replace(was.report, **out))
        query = "UPDATE pending_verdicts SET version = ? WHERE study_key = ? AND version > ?"
        with transaction(self._database):
            self._move(read, version=report.version, context=context.to_bytes())
            self._database.execute(query, (report.version + 1, key, read.version))

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
        return _pending_read(self._row(key, _READ))

    def has(self, key: str) -> bool:
        """Return whether there is a row of this study."""
        return key in self.keys()

    def keys(self) -> set[str]:
        """Return the keys of all studies with a row here."""
        return {row["study_key"] for row in self._database.execute("SELECT study_key FROM pending")}

    def context(self, key: str) -> AmendmentContext:
        """Return the amendment context of the report that is out."""
        return AmendmentContext.from_bytes(self._row(key)["context"])

    def rois(self, key: str, below: float = math.inf) -> list[Roi]:
        """Return the ROIs without a verdict, most valuable first, of priorities ``below`` it."""
        rows = self._database.execute(f"SELECT roi {_OPEN_OF_ONE}", (key, below))
        return [_unpack_roi(row["roi"]) for row in rows]

    def roi(self, key: str, roi_id: int) -> Roi | None:
        """Return one of the ROIs; None if it is not stored."""
        query = "SELECT roi FROM pending_rois WHERE study_key = ? AND roi_id = ?"
        row = self._database.execute(query, (key, roi_id)).fetchone()
        return None if row is None else _unpack_roi(row["roi"])

    def answers(self, key: str, version: int) -> EscalationResult:
        """Return all verdicts that ``version`` of the report has, and why it has no more."""
        rows = self._database.execute(
            "SELECT * FROM pending_verdicts WHERE study_key = ? AND version <= ? ORDER BY roi_id",
            (key, version),
        ).fetchall()
        verdicts = {row["roi_id"]: _unpack_verdict(row["verdict"]) for row in rows}
        masks = {
            row["roi_id"]: unpack_mask(verdicts[row["roi_id"]].mask, (row["z"], row["y"], row["x"]))
            for row in rows
            if verdicts[row["roi_id"]].mask
        }
        return EscalationResult(verdicts, masks=masks, reason=self.get(key).reason)

    def count_attempt(self, read: PendingRead) -> PendingRead:
        """Count an attempt before it begins, in case it kills the process."""
        with self._durable(PendingStep.RETRYING):
            self._move(read, attempts=read.attempts + 1)
        return self.get(read.study_key)

    def add_verdicts(self, read: PendingRead, answers: EscalationResult) -> PendingRead:
        """Store new verdicts, and move to AMENDING; an ROI keeps its first verdict."""
        with self._durable(PendingStep.AMENDING):
            self._move(read, step=PendingStep.AMENDING.value, reason=answers.reason, attempts=0)
            self._insert(read.study_key, read.version + 1, answers)
        return self.get(read.study_key)

    def give_up(self, read: PendingRead, reason: str) -> PendingRead:
        """Stop retrying, and move to AMENDING: the last version gives the reason."""
        with self._durable(PendingStep.AMENDING):
            self._move(read, step=PendingStep.AMENDING.value, reason=reason, gives_up=True)
        return self.get(read.study_key)

    def give_up_characterizations(self, read: PendingRead) -> PendingRead:
        """Delete the ROIs to characterize, and move to AMENDING; the other ones stay pending."""
        with self._durable(PendingStep.AMENDING):
            self._move(read, step=PendingStep.AMENDING.value)
            self._database.execute(
                "DELETE FROM pending_rois WHERE study_key = ? AND priority >= ?",
                (read.study_key, CHARACTERIZATION),
            )
        return self.get(read.study_key)

    def open_rois(self, read: PendingRead) -> tuple[int, ...]:
        """Return the identifiers of the ROIs without a verdict, most valuable first."""
        rows = self._database.execute(f"SELECT roi_id {_OPEN_OF_ONE}", (read.study_key, math.inf))
        return tuple(row["roi_id"] for row in rows)

    def version_written(
        self,
        read: PendingRead,
        context: AmendmentContext,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> PendingStep:
        """Note that the next version is out; return PENDING, or CLOSED if it is the last.

        ``facts`` are for the audit trail.
        """
        key, more = read.study_key, bool(self.open_rois(read)) and not read.gives_up
        step = PendingStep.PENDING if more else PendingStep.CLOSED
        with self._durable(step):
            version, stored = read.version + 1, context.to_bytes()
            self._move(read, step=step.value, version=version, context=stored)
            self._trail.record(Event.AMENDED, study_key=key, **facts)
            self._export(key, (context.report.version,))
            # Answered ROIs are not needed any more. After the last version everything goes:
            # deleting the row deletes its ROIs and verdicts.
            if more:
                self._database.execute(
                    "DELETE FROM pending_rois WHERE study_key = ?1 AND roi_id IN"
                    " (SELECT roi_id FROM pending_verdicts WHERE study_key = ?1)",
                    (key,),
                )
            else:
                self._database.execute("DELETE FROM pending WHERE study_key = ?", (key,))
        return step

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

    def _row(self, key: str, select: str = "SELECT * FROM pending") -> sqlite3.Row:
        found = self._database.execute(f"{select} WHERE study_key = ?", (key,))
        row: sqlite3.Row | None = found.fetchone()
        if row is None:
            raise KeyError(f"no read is pending for study {key}")
        return row

    def _insert(self, key: str, version: int, answers: EscalationResult) -> None:
        rows: list[tuple[object, ...]] = []
        for roi_id, verdict in answers.verdicts.items():
            mask = answers.masks.get(roi_id)
            packed, shape = (b"", (0, 0, 0)) if mask is None else (pack_mask(mask), mask.shape)
            stored = encode_response(replace(verdict, mask=packed)).SerializeToString()
            rows.append((key, roi_id, version, stored, *shape))
        self._database.executemany(
            "INSERT OR IGNORE INTO pending_verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", rows
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
