"""What both readers are: an opened artifact that can say what it is."""

from __future__ import annotations

from dataclasses import dataclass

from models.runtime.session import Session


@dataclass(frozen=True, eq=False)
class Opened:
    """Reads with one opened artifact."""

    session: Session

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.session.artifact.name

    @property
    def version(self) -> str:
        """The artifact's version."""
        return self.session.artifact.version

    @property
    def engine(self) -> str:
        """The engine that it runs on."""
        return self.session.engine
