"""One agent's site: its settings, its folders, and what is in its database."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.database import BUSY_S, RESTART, InvalidDatabase, Schema, is_damage
from edge.folders import DATABASE, AgentFolders
from edge.settings.core import EdgeSettings
from edge.store.studies import StudyStore

PAUSE_POLLS = 10
"""Length of a pause while nothing can be written, in polls of the inbox."""


@dataclass(frozen=True)
class Site:
    """Where an agent works. The agent has it, and so has every command that looks at the agent."""

    settings: EdgeSettings
    folders: AgentFolders
    schema: Schema

    @classmethod
    def of(cls, settings: EdgeSettings, schema: Schema) -> "Site":
        """Return the site of these settings."""
        return cls(settings, AgentFolders.of(settings), schema)

    @property
    def database(self) -> Path:
        """The file of the database; the agent makes it at its start."""
        return self.folders.state / DATABASE

    @property
    def pause_s(self) -> float:
        """Length of a pause while nothing can be written, in seconds."""
        return PAUSE_POLLS * self.settings.poll_s

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open the database for reading alone; in WAL mode no writer waits for it.

        Raises:
            sqlite3.Error: it is missing, damaged, or does not answer.
        """
        uri = f"{self.database.as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA query_only = ON")
            yield database

    def problem(self) -> str:
        """Return why the database does not answer; empty if it does."""
        try:
            with self.reading() as database:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            return f"{self.database}: {error}"
        return ""

    @contextmanager
    def opened(self) -> Iterator[StudyStore]:
        """Open the database for one use, beside an agent that may run; errors say what to do.

        Raises:
            InvalidDatabase: it is damaged, locked, or cannot be opened.
            OtherVersion: it is of another version of the program.
        """
        path = self.database
        try:
            with StudyStore(path, self.schema) as store:
                yield store
        except sqlite3.DatabaseError as error:
            hint = f": {RESTART}" if is_damage(error) else ""
            raise InvalidDatabase(f"{path}: {error}{hint}") from error
