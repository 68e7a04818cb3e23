"""The database of an agent, opened with what all parts store in it."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from edge.database import StepHook
from edge.run import schema_of
from edge.store.studies import StudyStore


def nothing(_step: Enum, _durable: bool) -> None:
    """Do nothing at a step."""


def open_store(path: Path, targets: Sequence[str] = (), on_step: StepHook = nothing) -> StudyStore:
    """Open the database at ``path``; it is made if it is missing."""
    return StudyStore(path, schema_of(path.parent / "trail", targets), on_step)
