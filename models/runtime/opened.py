"""What both readers are: an artifact opened for its kind, that can say what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.runtime.artifacts import find
from models.runtime.errors import UnfitArtifact
from models.runtime.session import Session, open_session


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


def open_as(
    kind: str, name: str, needed: Mapping[str, int], *, engine: str, threads: int
) -> Session:
    """The artifact of that name, opened for a reader of that ``kind``; errors as `open_session`.

    ``needed`` are the settings that the reader cannot do without, and how many numbers each has.

    Raises:
        UnknownArtifact: it is not in the manifest.
        UnfitArtifact: it is of another kind, or a setting is missing or cannot be.
    """
    artifact = find(name)
    if artifact.kind != kind:
        raise UnfitArtifact(f"{name} is of kind {artifact.kind!r}, {kind!r} is needed")
    for setting, count in needed.items():
        given = artifact.settings.get(setting)
        if not _are_numbers(given, count):
            raise UnfitArtifact(f"{name}: {setting} = {given!r}, {count} numbers are needed")
    return open_session(artifact, engine=engine, threads=threads)


def _are_numbers(given: object, count: int) -> bool:
    if not isinstance(given, Sequence) or len(given) != count:
        return False
    return all(isinstance(n, int | float) and math.isfinite(n) for n in given)
