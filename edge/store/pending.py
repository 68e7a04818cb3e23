"""What is owed: second readings that did not come by the deadline, until they come or are given up.

It lies in the spool's database. A debt is kept before the report that owes it is out, and counts
from the step in which the spool learns that it is out; it is over when nothing is owed any more.

    KEPT -> OWED <-> AMENDING -> SETTLED

The wall clock has no part in it: amendments go by version, and age is the time that an agent has
lived with the debt.

A debt: the second readings that one report owes, and the durable steps that it goes through.

KEPT -> OWED <-> AMENDING -> SETTLED

Regions and verdicts as the database keeps them: as they cross the wire, compressed.

The wire's checksum goes with a region, so that one that a disk has damaged is never read again
as if it were sound.

Keeps what a report will owe, before the report is out.

A candidate is owed when a second reading was wanted and no verdict came by the deadline: it was
held back for want of time, was not answered, or was refused. So is the description of what the
edge reports, where that was all that was wanted and the cloud said nothing of it.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum

from edge.decide import Plan
from edge.escalation.rois import EscalationResult, cut_rois
from edge.findings import BoolArray, Route
from edge.report.model import Assessment, Report
from edge.screen import EdgeReader
from edge.store.context import Grounds
from edge.store.database import WrongStep, transaction
from imaging.preprocess import Preprocessed
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


class OwedStep(Enum):
    """A durable step of a debt."""

    KEPT = "kept"  # regions and grounds are there; the report may not be out yet
    ASKED = "asked"  # one more asking is counted; the debt stays OWED
    AMENDING = "amending"  # new verdicts are there; the new version may not be out yet
    OWED = "owed"  # the report is out in this version, and more is owed
    SETTLED = "settled"  # the last version is out; nothing is kept any more


OwedHook = Callable[[OwedStep, bool], None]
"""Called with each step twice: just before it is made durable (False) and just after (True)."""


@dataclass(frozen=True)
class Debt:
    """What one report owes.

    Attributes:
        version: of the report that is out; in AMENDING the next one is being written.
        gives_up: whether the version being written is the last though verdicts are missing.
        attempts: askings since the last verdict came.
        age_s: seconds that agents have lived with it.
    """

    study_key: str
    step: OwedStep
    version: int
    gives_up: bool
    attempts: int
    age_s: float


STORED, SQUEEZED = 0, 6
"""zlib levels: 0.1 ms for a region of 48 voxels a side that a report waits for; and 3 ms."""


def pack_region(roi: Roi, level: int = SQUEEZED) -> bytes:
    """The region, its place on the wire and its checksum."""
    return zlib.compress(encode_roi(roi).SerializeToString(), level)


def unpack_region(data: bytes) -> Roi:
    """The region that `pack_region` packed.

    Raises:
        ChecksumMismatch: its voxels are not what was kept.
    """
    return decode_roi(pb.ReadRequest.FromString(zlib.decompress(data)).roi)


def squeeze(data: bytes) -> bytes:
    """What was packed at any level, at `SQUEEZED`."""
    return zlib.compress(zlib.decompress(data), SQUEEZED)


def pack_verdict(verdict: Verdict, mask: BoolArray | None) -> bytes:
    """The verdict, with ``mask`` as the voxels of its nodule."""
    packed = b"" if mask is None else pack_mask(mask)
    return encode_response(replace(verdict, mask=packed)).SerializeToString()


def unpack_verdict(data: bytes) -> Verdict:
    """The verdict that `pack_verdict` packed.

    Raises:
        TypeError: it is none.
    """
    verdict = decode_response(pb.ReadResponse.FromString(data))
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{verdict!r} was kept as a verdict")
    return verdict


_SCHEMA = """
CREATE TABLE IF NOT EXISTS owed (
    study_key TEXT PRIMARY KEY,
    step TEXT NOT NULL,
    version INTEGER NOT NULL,
    gives_up INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    age_s REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL,
    grounds BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS owed_regions (
    study_key TEXT NOT NULL REFERENCES owed ON DELETE CASCADE,
    roi_id INTEGER NOT NULL,
    place INTEGER NOT NULL,
    region BLOB NOT NULL,
    squeezed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study_key, roi_id)
);
CREATE INDEX IF NOT EXISTS owed_stored ON owed_regions (squeezed) WHERE squeezed = 0;
CREATE TABLE IF NOT EXISTS owed_verdicts (
    study_key TEXT NOT NULL REFERENCES owed ON DELETE CASCADE,
    roi_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    verdict BLOB NOT NULL,
    z INTEGER NOT NULL,
    y INTEGER NOT NULL,
    x INTEGER NOT NULL,
    PRIMARY KEY (study_key, roi_id)
);
"""


class Owed:
    """The debts in a database that is open; ``on_step`` is told of every durable step."""

    def __init__(self, database: sqlite3.Connection, on_step: OwedHook) -> None:
        self._database, self._on_step = database, on_step
        database.executescript(_SCHEMA)

    def keep(self, grounds: Grounds, answers: EscalationResult, rois: Sequence[Roi]) -> None:
        """Keep what a report owes that is about to go out; what an earlier attempt kept goes.

        Args:
            grounds: what it was made on.
            answers: what had come when it was made.
            rois: the regions owed, most valuable first; nothing is kept if there are none.
        """
        key = grounds.report.study_key
        if not rois:
            self.forget(key)
            return
        head = (key, OwedStep.KEPT.value, grounds.report.version, answers.reason)
        with self._durable(OwedStep.KEPT):
            self.forget(key)
            self._database.execute(
                "INSERT INTO owed (study_key, step, version, reason, grounds)"
                " VALUES (?, ?, ?, ?, ?)",
                (*head, grounds.to_bytes()),
            )
            # stored, not squeezed: the report waits for it. `squeeze` does that later
            self._database.executemany(
                "INSERT INTO owed_regions (study_key, roi_id, place, region) VALUES (?, ?, ?, ?)",
                [(key, roi.roi_id, i, pack_region(roi, STORED)) for i, roi in enumerate(rois)],
            )
            self._insert(key, grounds.report.version, answers)

    def publish(self, key: str) -> None:
        """The report is out, what it owes counts; part of the spool's own transaction."""
        self._database.execute(
            "UPDATE owed SET step = ? WHERE study_key = ? AND step = ?",
            (OwedStep.OWED.value, key, OwedStep.KEPT.value),
        )

    def forget(self, key: str) -> None:
        """Drop what was kept for a report that did not go out; part of another's transaction."""
        self._database.execute(
            "DELETE FROM owed WHERE study_key = ? AND step = ?", (key, OwedStep.KEPT.value)
        )

    def at(self, step: OwedStep) -> list[Debt]:
        """The debts at this step: those asked for least first, and of these the oldest."""
        rows = self._database.execute(
            "SELECT study_key, step, version, gives_up, attempts, age_s FROM owed"
            " WHERE step = ? ORDER BY attempts, rowid",
            (step.value,),
        )
        return [_debt(row) for row in rows]

    def get(self, key: str) -> Debt:
        """The debt of one study.

        Raises:
            KeyError: it owes nothing.
        """
        query = "SELECT * FROM owed WHERE study_key = ?"
        if (row := self._database.execute(query, (key,)).fetchone()) is None:
            raise KeyError(f"study {key} owes nothing")
        return _debt(row)

    def grounds(self, key: str) -> Grounds:
        """What the report that is out was made on."""
        query = "SELECT grounds FROM owed WHERE study_key = ?"
        return Grounds.from_bytes(self._database.execute(query, (key,)).fetchone()["grounds"])

    def regions(self, key: str) -> list[Roi]:
        """The regions whose verdicts the report that is out lacks, most valuable first."""
        rows = self._database.execute(
            "SELECT region FROM owed_regions WHERE study_key = ? ORDER BY place", (key,)
        )
        return [unpack_region(row["region"]) for row in rows]

    def region(self, key: str, roi_id: int) -> Roi | None:
        """One of the regions, None if it is not kept."""
        query = "SELECT region FROM owed_regions WHERE study_key = ? AND roi_id = ?"
        row = self._database.execute(query, (key, roi_id)).fetchone()
        return None if row is None else unpack_region(row["region"])

    def answers(self, key: str, version: int) -> EscalationResult:
        """All verdicts that ``version`` of the report has, and why it has no more."""
        rows = self._database.execute(
            "SELECT * FROM owed_verdicts WHERE study_key = ? AND version <= ? ORDER BY roi_id",
            (key, version),
        ).fetchall()
        query = "SELECT reason FROM owed WHERE study_key = ?"
        reason = self._database.execute(query, (key,)).fetchone()["reason"]
        verdicts = {row["roi_id"]: unpack_verdict(row["verdict"]) for row in rows}
        masks = {
            row["roi_id"]: unpack_mask(verdicts[row["roi_id"]].mask, (row["z"], row["y"], row["x"]))
            for row in rows
            if verdicts[row["roi_id"]].mask
        }
        return EscalationResult(verdicts, masks=masks, reason=reason)

    def asked(self, debt: Debt) -> Debt:
        """Count an asking before it begins, so that one that kills the process is not the first."""
        with self._durable(OwedStep.ASKED):
            self._move(debt, "attempts = attempts + 1")
        return self.get(debt.study_key)

    def answered(self, debt: Debt, answers: EscalationResult) -> Debt:
        """Keep new verdicts, AMENDING from here on; what was answered before is not taken again."""
        with self._durable(OwedStep.AMENDING):
            step = (OwedStep.AMENDING.value, answers.reason)
            self._move(debt, "step = ?, reason = ?, attempts = 0", step)
            self._insert(debt.study_key, debt.version + 1, answers)
        return self.get(debt.study_key)

    def give_up(self, debt: Debt, reason: str) -> Debt:
        """Ask for it no more, AMENDING from here on: a last version will say so."""
        with self._durable(OwedStep.AMENDING):
            self._move(
                debt, "step = ?, reason = ?, gives_up = 1", (OwedStep.AMENDING.value, reason)
            )
        return self.get(debt.study_key)

    def open_places(self, debt: Debt) -> tuple[int, ...]:
        """The regions that no verdict is there for, most valuable first."""
        rows = self._database.execute(
            "SELECT roi_id FROM owed_regions WHERE study_key = ?1 AND roi_id NOT IN"
            " (SELECT roi_id FROM owed_verdicts WHERE study_key = ?1) ORDER BY place",
            (debt.study_key,),
        )
        return tuple(row["roi_id"] for row in rows)

    def amended(self, debt: Debt, grounds: Grounds) -> OwedStep:
        """The next version is out: OWED again if more is owed, else SETTLED and forgotten."""
        key, more = debt.study_key, bool(self.open_places(debt)) and not debt.gives_up
        step = OwedStep.OWED if more else OwedStep.SETTLED
        with self._durable(step):
            change = "step = ?, version = version + 1, grounds = ?"
            self._move(debt, change, (step.value, grounds.to_bytes()))
            if more:
                self._database.execute(
                    "DELETE FROM owed_regions WHERE study_key = ?1 AND roi_id IN"
                    " (SELECT roi_id FROM owed_verdicts WHERE study_key = ?1)",
                    (key,),
                )
            else:
                self._database.execute("DELETE FROM owed WHERE study_key = ?", (key,))
        return step

    def pass_time(self, seconds: float) -> None:
        """Every debt has become older by ``seconds``."""
        self._database.execute("UPDATE owed SET age_s = age_s + ?", (seconds,))

    def standing(self) -> tuple[int, float]:
        """How many reports owe something, and the age of the oldest debt in seconds."""
        row = self._database.execute(
            "SELECT count(*), coalesce(max(age_s), 0.0) FROM owed WHERE step != ?",
            (OwedStep.KEPT.value,),
        ).fetchone()
        return row[0], row[1]

    def used_bytes(self) -> int:
        """What the database holds, without what is free in its file: nearly all of it is owed."""
        pages, free, page_bytes = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    def squeeze(self) -> bool:
        """Compress one region that was stored in haste; returns whether there was one.

        A damaged one stays as it is: asking for it finds out, and sets its debt aside.
        """
        row = self._database.execute(
            "SELECT study_key, roi_id, region FROM owed_regions WHERE squeezed = 0 LIMIT 1"
        ).fetchone()
        if row is not None:
            region = row["region"]
            with suppress(zlib.error):
                region = squeeze(region)
            self._database.execute(
                "UPDATE owed_regions SET region = ?, squeezed = 1"
                " WHERE study_key = ? AND roi_id = ?",
                (region, row["study_key"], row["roi_id"]),
            )
        return row is not None

    def _insert(self, key: str, version: int, answers: EscalationResult) -> None:
        rows: list[tuple[object, ...]] = []
        for roi_id, verdict in answers.verdicts.items():
            mask = answers.masks.get(roi_id)
            shape = (0, 0, 0) if mask is None else mask.shape
            rows.append((key, roi_id, version, pack_verdict(verdict, mask), *shape))
        self._database.executemany(
            "INSERT OR IGNORE INTO owed_verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", rows
        )

    def _move(self, debt: Debt, change: str, values: tuple[object, ...] = ()) -> None:
        changed = self._database.execute(
            f"UPDATE owed SET {change} WHERE study_key = ? AND step = ? AND version = ?",
            (*values, debt.study_key, debt.step.value, debt.version),
        ).rowcount
        if changed != 1:
            raise WrongStep(f"{debt} has been moved by another process")

    @contextmanager
    def _durable(self, step: OwedStep) -> Iterator[None]:
        self._on_step(step, False)
        with transaction(self._database):
            yield
        self._on_step(step, True)


def _debt(row: sqlite3.Row) -> Debt:
    return Debt(
        row["study_key"],
        OwedStep(row["step"]),
        row["version"],
        bool(row["gives_up"]),
        row["attempts"],
        row["age_s"],
    )


PersistPending = Callable[[Report, Assessment, EdgeReader, Preprocessed], None]
"""Is told of a report that is about to go out, and of all that it was made on."""


def keep_in(owed: Owed, shape: tuple[int, int, int]) -> PersistPending:
    """Keeps in ``owed`` the regions, voxels of ``shape`` (z, y, x), that lack their verdict."""

    def keep(report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed) -> None:
        plan, answers = assessment.plan, assessment.answers
        grounds = Grounds(report, plan, reader.thresholds, reader.weights, box.geometry)
        whole = replace(plan, send=still_owed(plan, answers), sizes=())
        owed.keep(grounds, answers, cut_rois(whole, box, shape))

    return keep


def still_owed(plan: Plan, answers: EscalationResult) -> tuple[int, ...]:
    """The places whose second reading was wanted and did not come, most valuable first.

    What the edge reports anyway is owed a description only where nothing else was wanted and none
    came; an audit owes nothing.
    """
    if answers.switched_off:
        return ()
    if not plan.uncertain and not any(i in answers.verdicts for i in plan.characterize):
        return plan.characterize
    wanted = dict.fromkeys((*plan.send, *plan.later, *plan.uncertain))
    undecided = (i for i in wanted if plan.decisions[i].route is Route.ESCALATE)
    return tuple(i for i in undecided if i not in answers.verdicts)
