"""Studies that arrived in several parts: which series each study has, and which parts came later.

A later part is a study of its own until it is found to belong to an earlier one, whose report is
out. Then its images join those of the earlier study, and that is read again.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

TABLES = """
CREATE TABLE IF NOT EXISTS series (
    series TEXT PRIMARY KEY, -- its UID and the identifier of its patient
    study_key TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS parts (
    part_key TEXT PRIMARY KEY,
    study_key TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 0,
    images INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS notes (
    study_key TEXT NOT NULL,
    text TEXT NOT NULL, -- for its report
    PRIMARY KEY (study_key, text)
);
"""


def uid_line(study_uid: str, patient_id: str, study_key: str) -> str:
    """Return what is noted among the series of a study, so that its UID leads to it."""
    return f"study UID {study_uid}\n{patient_id}\n{study_key}"


@dataclass(frozen=True)
class LaterPart:
    """A later part of a study.

    Attributes:
        study_key: of the study to which it belongs.
        images: how many it brings; without any, it repeats what its study has.
        version: of the report with its images; 0 for none yet.
        note: for the report of the study, which does not have its images.
    """

    study_key: str
    images: int
    version: int = 0
    note: str = ""


class PartStore:
    """The parts of studies in an open database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def owner(self, series: Collection[str]) -> str | None:
        """Return the key of the study that has one of these series, the last one; else None."""
        marks = ", ".join("?" * len(series))
        row = self._database.execute(
            f"SELECT study_key FROM series WHERE series IN ({marks}) ORDER BY rowid DESC",
            tuple(series),
        ).fetchone()
        return None if row is None else str(row["study_key"])

    def add_series(self, study_key: str, series: Collection[str]) -> None:
        """Note that this study has these series; the last study that has one is its owner."""
        self._database.executemany(
            "INSERT OR REPLACE INTO series VALUES (?, ?)", [(one, study_key) for one in series]
        )

    def of_study(self, study_uid: str) -> dict[str, str]:
        """Return the identifier of the patient by key of the studies with this UID."""
        start = f"study UID {study_uid}"
        query = "SELECT study_key, series FROM series WHERE series > ? AND series < ?"
        rows = self._database.execute(query, (f"{start}\n", f"{start}\v"))
        return {row["study_key"]: row["series"].split("\n")[1] for row in rows}

    def put(self, part_key: str, part: LaterPart) -> None:
        """Note a later part of a study; it belongs to the transaction of a step."""
        self._database.execute(
            "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)",
            (part_key, part.study_key, part.version, part.images),
        )
        if part.note:
            self.add_note(part.study_key, part.note)

    def forget(self, study_key: str) -> None:
        """Delete the rows of a study; in the transaction that deletes its own."""
        for table in ("series", "parts", "notes"):
            self._database.execute(f"DELETE FROM {table} WHERE study_key = ?", (study_key,))

    def add_note(self, study_key: str, text: str) -> bool:
        """Note a line for the report of a study; return whether it is new."""
        query = "INSERT OR IGNORE INTO notes VALUES (?, ?)"
        return self._database.execute(query, (study_key, text)).rowcount > 0

    def notes(self, study_key: str) -> tuple[str, ...]:
        """Return the lines for the report of a study."""
        query = "SELECT text FROM notes WHERE study_key = ? ORDER BY rowid"
        return tuple(row["text"] for row in self._database.execute(query, (study_key,)))

    def part(self, part_key: str) -> LaterPart:
        """Return what is known of a later part."""
        query = "SELECT study_key, images, version FROM parts WHERE part_key = ?"
        return LaterPart(*self._database.execute(query, (part_key,)).fetchone())

    def keys(self) -> set[str]:
        """Return the keys of all later parts."""
        return {row["part_key"] for row in self._database.execute("SELECT part_key FROM parts")}

    def later_parts(self, study_key: str) -> dict[str, LaterPart]:
        """Return by key the parts that have joined a study, in the order of their versions."""
        query = "SELECT part_key FROM parts WHERE study_key = ? AND version > 0 ORDER BY version"
        rows = self._database.execute(query, (study_key,)).fetchall()
        return {row["part_key"]: self.part(row["part_key"]) for row in rows}
