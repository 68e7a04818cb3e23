"""The database of an agent, opened with what all parts store in it."""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path

from edge.database import StepHook
from edge.dicom_out.exports import ExportStore
from edge.run import PARTS
from edge.settings.core import EdgeSettings
from edge.store.schema import Schema
from edge.store.studies import StudyStore


def nothing(_step: Enum, _durable: bool) -> None:
    """Do nothing at a step."""


def schema_of(path: Path, targets: Sequence[str] = ()) -> Schema:
    """What all parts store in the database at ``path``, as with these targets."""
    settings = EdgeSettings(state_dir=path.parent, inbox=path.parent.parent / "inbox")
    schema = Schema.joined(part.schema(settings) for part in PARTS)
    export = partial(ExportStore, targets=targets)
    return replace(schema, extensions=(export,) if targets else ())


def open_store(path: Path, targets: Sequence[str] = (), on_step: StepHook = nothing) -> StudyStore:
    """Open the database at ``path``; it is made if it is missing."""
    return StudyStore(path, schema_of(path, targets), on_step)
