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


@dataclass(frozen=True)
class LaterPart:
    """Images that arrived after their study was reported.

    ``version`` is that of the report with them, ``images`` their number.
    """

    version: int
    images: int


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

    def begin(self, part_key: str, study_key: str, new_images: int) -> None:
        """Note to which study the later part belongs; in the transaction of its step JOINING."""
        self._database.execute(
            "INSERT INTO parts (part_key, study_key, images) VALUES (?, ?, ?)",
            (part_key, study_key, new_images),
        )

    def is_repetition(self, part_key: str) -> bool:
        """Return whether a later part has no image that its study lacks."""
        query = "SELECT images FROM parts WHERE part_key = ?"
        return bool(self._database.execute(query, (part_key,)).fetchone()["images"] == 0)

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

    def study_of(self, part_key: str) -> str:
        """Return the key of the study to which a later part belongs."""
        query = "SELECT study_key FROM parts WHERE part_key = ?"
        return str(self._database.execute(query, (part_key,)).fetchone()["study_key"])

    def finish(self, part_key: str, part: LaterPart) -> None:
        """Note the version that will have the images; in the transaction that ends JOINING."""
        self._database.execute(
            "UPDATE parts SET version = ?, images = ? WHERE part_key = ?",
            (part.version, part.images, part_key),
        )

    def adopt(self, part_key: str, study_key: str, part: LaterPart) -> None:
        """Note a later part that lies with its study and that no row knows."""
        self._database.execute(
            "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)",
            (part_key, study_key, part.version, part.images),
        )

    def later_parts(self, study_key: str) -> tuple[LaterPart, ...]:
        """Return the later parts that have joined a study, in their order."""
        rows = self._database.execute(
            "SELECT version, images FROM parts WHERE study_key = ? AND version > 0"
            " ORDER BY version",
            (study_key,),
        )
        return tuple(LaterPart(row["version"], row["images"]) for row in rows)
