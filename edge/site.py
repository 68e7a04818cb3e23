"""One agent's site: its settings, its folders, and what is in its database."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.folders import DATABASE, AgentFolders
from edge.settings.core import EdgeSettings
from edge.store.repair import opened
from edge.store.schema import Schema
from edge.store.studies import StudyStore


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

    @contextmanager
    def opened(self) -> Iterator[StudyStore]:
        """Open the database for one use, beside an agent that may run; errors say what to do.

        Raises:
            InvalidDatabase: it is damaged, locked, or cannot be opened.
            OtherVersion: it is of another version of the program.
        """
        with opened(self.database, self.schema) as store:
            yield store
