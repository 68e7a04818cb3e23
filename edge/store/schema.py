"""What is in the database of the agent: the tables of the core, and what its parts store there.

A part stores its rows in the transaction of the step that they belong to. So the core calls it
there, and knows nothing else of it.
"""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from edge.audit import AuditTrail, NoAudit
from edge.database import Migration, StepHook


class StoreExtension(Protocol):
    """What a part stores beside the studies."""

    def reported(self, key: str, versions: Iterable[int]) -> None:
        """Note that these versions of a report are out; part of the transaction that says so."""

    def forget_report(self, key: str) -> None:
        """Delete what is known of a report that is gone; part of the transaction that says so."""

    def held(self) -> set[str]:
        """Return the keys of the studies whose reports must stay."""


Extend = Callable[[sqlite3.Connection, AuditTrail, StepHook], StoreExtension]
"""Opens an extension in an open database."""


OpenAudit = Callable[[sqlite3.Connection, StepHook], AuditTrail]
"""Opens the audit trail in an open database."""


def no_audit(_database: sqlite3.Connection, _on_step: StepHook) -> AuditTrail:
    """Return a trail that records nothing."""
    return NoAudit()


@dataclass(frozen=True)
class Schema:
    """What the parts store in the database.

    Attributes:
        migrations: of the parts, in any order; those of the core are always there.
        audit: opens the audit trail in an open database.
        extensions: open what is stored beside the studies.
    """

    migrations: tuple[Migration, ...] = ()
    audit: OpenAudit = no_audit
    extensions: tuple[Extend, ...] = ()

    @classmethod
    def joined(cls, schemas: Iterable["Schema"]) -> "Schema":
        """Return what all of these store; one of them at most has an audit trail."""
        every = tuple(schemas)
        return cls(
            tuple(one for schema in every for one in schema.migrations),
            next((one.audit for one in every if one.audit is not no_audit), no_audit),
            tuple(one for schema in every for one in schema.extensions),
        )
