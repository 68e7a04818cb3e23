"""What the audit trail records: the events, who causes them, and how the core records one.

The trail itself is a part (`edge.trail`). The core knows only this.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from edge.access import user_name


class Event(StrEnum):
    """What a record is about; its fields are in docs/monitor.md."""

    FILE = "file begins"  # the head record of every file: who writes it
    CONTINUED = "trail continued"  # after a lost or older database, or after lost records
    STARTED = "agent started"
    STOPPED = "agent stopped"
    RECEIVED = "study received"
    JOINED = "images joined"
    REPEATED = "study repeated"
    CHANGED = "changed images received"
    ADOPTED = "study adopted"
    SENT = "ROIs sent"
    READ = "study read"
    REJECTED = "study rejected"
    AMENDED = "report amended"
    DELIVERED = "objects delivered"
    REQUEUED = "study requeued"
    RESENT = "results resent"
    LOGIN = "login"
    VIEWED = "viewed"
    STUDY_REMOVED = "study removed"
    REPORT_REMOVED = "report removed"
    REMOVAL_FAILED = "removal failed"
    MODEL_FETCHED = "model fetched"
    MODEL_REFUSED = "model refused"
    MODEL_SHADOWED = "model in shadow"
    MODEL_PROMOTED = "model promoted"
    MODEL_ROLLED_BACK = "model rolled back"
    MODEL_REPLACED = "model replaced"  # the active one cannot be opened


@dataclass(frozen=True)
class Person:
    """Who does something: a user of this machine, or a user of the status page from ``peer``."""

    user: str
    peer: str = ""

    @classmethod
    def here(cls) -> Self:
        """Return the user who runs this process."""
        return cls(user_name(os.geteuid()))

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a record."""
        return {"user": self.user, **({"peer": self.peer} if self.peer else {})}


class AuditTrail:
    """Where events are recorded, within the transaction that is open in the agent's database.

    This base records nothing: a database may be opened without the parts of the agent.
    """

    def record(self, event: Event, **fields: Any) -> None:
        """Record an event; ``fields`` are JSON values, without names of patients."""

    def record_removal(self, event: Event, study_key: str, reason: str) -> None:
        """Record that a study or report is about to be removed, once for each."""

    def forget_removals(self, study_key: str) -> None:
        """Let the removal of a study that is read again be recorded again."""

    def forget(self, study_key: str) -> None:
        """Delete what is known of a study of which nothing is left."""

    def flush(self) -> None:
        """Write what was recorded to where it is kept; only the agent does.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now; call again later.
        """
