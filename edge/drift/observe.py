"""What is noted of one report to recognise drift: counts and HU, and no data of a patient.

It is computed from ``report.json`` alone, while the agent is idle and not in the transaction that
marks the report as written: nothing of it is in the way of a study. A row that is missing, after a
lost database, is made again from the file. A row has about 200 bytes, and is kept when study and
report are removed.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from edge.database import Migration
from edge.findings import Finding, Route, SecondReading
from edge.report.model import Report, Status

EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95,
         0.98)  # fmt: skip
"""Limits between the bins of scores: narrow where most scores lie."""
BINS = len(EDGES) + 1
_SCORES = np.dtype("<u2")


_TABLES = """
CREATE TABLE IF NOT EXISTS drift (
    study_key TEXT PRIMARY KEY,
    updated TEXT NOT NULL, -- that of the study's row, when it was read
    model TEXT NOT NULL,
    provisional INTEGER NOT NULL,
    scores BLOB NOT NULL, -- unsigned 16 bit, little-endian
    kept INTEGER NOT NULL,
    uncertain INTEGER NOT NULL,
    is_read_again INTEGER NOT NULL,
    findings INTEGER NOT NULL,
    possible INTEGER NOT NULL,
    read_again INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    air_hu REAL,
    blood_hu REAL,
    noise_hu REAL,
    kernel TEXT NOT NULL,
    thickness_mm REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS drift_by_model ON drift (model);
"""

MIGRATIONS = (Migration(4, _TABLES),)


@dataclass(frozen=True)
class Observation:
    """One study.

    Attributes:
        model: of the edge, name and version; empty for a study that has nothing to observe.
        provisional: whether a later version of the report may change the numbers.
        scores: number of candidates in each of `BINS`.
        kept: candidates that the edge does not dismiss.
        uncertain: those of them that it could not decide.
        is_read_again: whether the second reading is complete.
        findings, possible: in the report.
        read_again: uncertain candidates of a study whose second reading is complete, else 0.
        changed: those of them that the second reading decided otherwise than the edge alone.
        air_hu, blood_hu, noise_hu: of `imaging.acquisition.Acquisition`; None where not measured.
        kernel, thickness_mm: as the images state them, empty and 0 where they do not.
    """

    study_key: str
    model: str = ""
    provisional: bool = False
    scores: tuple[int, ...] = (0,) * BINS
    kept: int = 0
    uncertain: int = 0
    is_read_again: bool = False
    findings: int = 0
    possible: int = 0
    read_again: int = 0
    changed: int = 0
    air_hu: float | None = None
    blood_hu: float | None = None
    noise_hu: float | None = None
    kernel: str = ""
    thickness_mm: float = 0.0


def observe(study_key: str, report: Report | None, finding: float) -> Observation:
    """Return what is noted of a report; only the key where it is missing, or no study was read.

    ``finding`` is the probability from which a candidate is a finding.
    """
    if report is None or not report.was_read:
        return Observation(study_key)
    scores = [0] * BINS
    for decision in report.decisions:
        scores[bin_of(decision.candidate.score)] += 1
    unsure = [one.candidate.score for one in report.uncertain]
    is_complete = report.second_reading is SecondReading.COMPLETE
    measured = report.acquisition
    return Observation(
        study_key,
        model=report.models.get("edge", "").partition(" (")[0],  # without its engine
        provisional=report.status is Status.PROVISIONAL,
        scores=tuple(scores),
        kept=len(report.decisions) - len(report.dismissed),
        uncertain=len(unsure),
        is_read_again=is_complete,
        findings=len(report.findings),
        possible=len(report.possible),
        read_again=len(unsure) if is_complete else 0,
        changed=_changed(unsure, report.findings, finding) if is_complete else 0,
        **(asdict(measured) if measured else {}),
        kernel=report.header.kernel,
        thickness_mm=report.header.slice_thickness_mm,
    )


def bin_of(score: float) -> int:
    """Return the number of the bin of a score."""
    return bisect_right(EDGES, score)


def _changed(unsure: Sequence[float], findings: Sequence[Finding], finding: float) -> int:
    """Count the decisions that the second reading changed, in either direction."""
    reported = [one.edge_score for one in findings if one.route is Route.ESCALATE]
    raised = sum(score < finding for score in reported)
    kept = len(reported) - raised
    lowered = sum(score >= finding for score in unsure) - kept
    return raised + max(lowered, 0)


def due(database: sqlite3.Connection, most: int) -> list[tuple[str, str, str]]:
    """Return key, report name and last change of studies to observe, in their order.

    They are done and have no row, or were read again since, or were provisional and nothing is
    pending any more.
    """
    rows = database.execute(
        "SELECT s.id, s.report_name, s.updated FROM studies s"
        " LEFT JOIN drift d ON d.study_key = s.id"
        " WHERE s.step = 'done' AND (d.study_key IS NULL OR d.updated != s.updated"
        " OR (d.provisional AND s.id NOT IN (SELECT study_key FROM pending)))"
        " ORDER BY s.rowid LIMIT ?",
        (most,),
    )
    return [(row["id"], row["report_name"], row["updated"]) for row in rows]


def put(database: sqlite3.Connection, seen: Observation, updated: str) -> None:
    """Insert or replace the row of a study; it keeps its place among the others."""
    scores = np.minimum(seen.scores, 65_535).astype(_SCORES).tobytes()
    values = {**asdict(seen), "updated": updated, "scores": scores}
    marks = ", ".join(f":{name}" for name in values)
    changes = ", ".join(f"{name} = :{name}" for name in values if name != "study_key")
    database.execute(
        f"INSERT INTO drift ({', '.join(values)}) VALUES ({marks})"
        f" ON CONFLICT (study_key) DO UPDATE SET {changes}",
        values,
    )


def observations(
    database: sqlite3.Connection, model: str, most: int, *, skip: int = 0
) -> list[Observation]:
    """Return observations of a model in their order, without the first ``skip`` of them."""
    query = "SELECT * FROM drift WHERE model = ? ORDER BY rowid LIMIT ? OFFSET ?"
    return [_observation(row) for row in database.execute(query, (model, most, skip))]


def _observation(row: sqlite3.Row) -> Observation:
    values = {field.name: row[field.name] for field in fields(Observation)}
    flags = {name: bool(row[name]) for name in ("provisional", "is_read_again")}
    scores = tuple(np.frombuffer(row["scores"], _SCORES).tolist())
    return Observation(**{**values, **flags, "scores": scores})
