"""What is known of one study: a row of the table of studies, as `edge.store.studies` keeps it."""

import json
import sqlite3
from dataclasses import dataclass

from edge.store.steps import Step


@dataclass(frozen=True)
class Record:
    """The row of one study.

    Attributes:
        id: the random study key; its folder in ``work``, ``done`` or ``quarantine``.
        members: names in the inbox of all its files and folders, the study itself first.
        report_name: its folder in the outbox, unique.
        attempts: readings that were started and not finished, the current one included.
        kind, reason, file: why it was quarantined; else empty.
        created, updated: wall-clock time of the claim and of the last step, ISO 8601.
    """

    id: str
    members: tuple[str, ...]
    report_name: str
    step: Step
    attempts: int
    kind: str
    reason: str
    file: str
    created: str
    updated: str

    @property
    def name(self) -> str:
        """Name of its folder, or of its volume file, in the inbox."""
        return self.members[0]


def record_of(row: sqlite3.Row) -> Record:
    """Return a row of the table of studies."""
    values = dict(row)
    members = tuple(json.loads(values.pop("members")))
    return Record(**values | {"members": members, "step": Step(values["step"])})
