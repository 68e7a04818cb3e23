"""A study's row in its table, its durable steps, and which of these may follow which.

Every step is durable before the next begins, so that after a crash at any moment the row and the
files together tell what remains to be done. The work between two steps is in `edge.agent.claim`
and `edge.agent.study`.

    CLAIMING -> CLAIMED -> READING -> REPORTED -> DONE
        |        |  ^         |                    ^
     forgotten   |  +---------+----> QUARANTINING -|--> QUARANTINED
                 +----> JOINING -------------------+

A later part of a study ends JOINING in one transaction that sets its study, which is at DONE or
QUARANTINED, back to CLAIMED (`edge.store.later_parts`). Where the study cannot be read with it, the
part goes from DONE to QUARANTINING.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """A durable step of a study."""

    CLAIMING = "claiming"  # the row exists; the files may still be in the inbox
    CLAIMED = "claimed"  # the files are in work/
    JOINING = "joining"  # it belongs to an earlier study; its files are moved there
    READING = "reading"  # an attempt has started
    REPORTED = "reported"  # the report is complete in the outbox
    DONE = "done"  # the files are in done/
    QUARANTINING = "quarantining"  # the reason is stored; the files may still be in work/
    QUARANTINED = "quarantined"  # files and reason are in quarantine/


BEFORE: Mapping[Step, tuple[Step, ...]] = {
    Step.CLAIMED: (Step.CLAIMING, Step.READING),
    Step.READING: (Step.CLAIMED, Step.READING),
    Step.REPORTED: (Step.READING,),
    Step.JOINING: (Step.CLAIMED,),
    Step.DONE: (Step.REPORTED, Step.JOINING),
    Step.QUARANTINING: (Step.CLAIMED, Step.READING, Step.DONE),
    Step.QUARANTINED: (Step.QUARANTINING,),
}
"""The steps at which a study may be before each step."""


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
