"""One row a study for recognising drift: about 150 bytes, kept when study and report are removed.

A row is made from the report while the agent is idle, not in the transaction that marks the report
as written: nothing of it is in the way of a study, and what is missing is found by comparing.
"""

import array
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields

from edge.database import Migration
from edge.drift.observe import BINS, Observation

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
    changed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS drift_by_model ON drift (model);
"""

MIGRATIONS = (Migration(4, _TABLES),)


class DriftStore:
    """The observations in an open database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def due(self, most: int) -> list[tuple[str, str, str]]:
        """Return key, report name and last change of studies to observe, in their order.

        They are done and have no row, or were read again since, or were provisional and nothing is
        pending any more.
        """
        rows = self._database.execute(
            "SELECT s.id, s.report_name, s.updated FROM studies s"
            " LEFT JOIN drift d ON d.study_key = s.id"
            " WHERE s.step = 'done' AND (d.study_key IS NULL OR d.updated != s.updated"
            " OR (d.provisional AND s.id NOT IN (SELECT study_key FROM pending)))"
            " ORDER BY s.rowid LIMIT ?",
            (most,),
        )
        return [(row["id"], row["report_name"], row["updated"]) for row in rows]

    def put(self, seen: Observation, updated: str) -> None:
        """Insert or replace the row of a study; it keeps its place among the others."""
        values = {**asdict(seen), "updated": updated, "scores": pack(seen.scores)}
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        changes = ", ".join(f"{name} = :{name}" for name in values if name != "study_key")
        self._database.execute(
            f"INSERT INTO drift ({names}) VALUES ({marks})"
            f" ON CONFLICT (study_key) DO UPDATE SET {changes}",
            values,
        )


def pack(scores: Sequence[int]) -> bytes:
    """Pack the counts of bins."""
    packed = array.array("H", (min(count, 65_535) for count in scores))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> tuple[int, ...]:
    """Unpack what `pack` packed; of another number of bins, none."""
    packed = array.array("H")
    if len(data) != BINS * packed.itemsize:
        return (0,) * BINS
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def observations(database: sqlite3.Connection, model: str, *, last: int = 0, first: int = 0,
                 ) -> list[tuple[int, Observation]]:  # fmt: skip
    """Return the ``first`` or the ``last`` observations of a model with their numbers, in order."""
    order = "" if first else "DESC"
    rows = database.execute(
        f"SELECT rowid AS number, * FROM drift WHERE model = ? ORDER BY rowid {order} LIMIT ?",
        (model, first or last),
    ).fetchall()
    found = [(row["number"], _observation(row)) for row in rows]
    return found if first else found[::-1]


def _observation(row: sqlite3.Row) -> Observation:
    values = {field.name: row[field.name] for field in fields(Observation)}
    flags = {name: bool(row[name]) for name in ("provisional", "is_read_again")}
    return Observation(**{**values, **flags, "scores": unpack(row["scores"])})
