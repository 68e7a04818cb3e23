"""What one study came to: the report as data, before anyone prints or draws it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.store.pending import Keep


def new_study_key() -> str:
    """A random name for one reading of one study; it says nothing of the patient."""
    return secrets.token_hex(16)


def keep_nothing(*_: object) -> None:
    """For who has no spool: a report that is provisional stays so."""


@dataclass(frozen=True)
class Job:
    """One study to read: the folder or file ``source``, and the folder ``out`` for its report.

    A study that is read again after a crash keeps its ``study_key``, so that the cloud knows it.
    ``keep`` is told of the report before it is out, and keeps what it will owe. ``since_s`` is the
    moment on the line's clock from which its budget runs; None for that in which it is taken up.
    """

    source: Path
    out: Path
    study_key: str = field(default_factory=new_study_key)
    keep: Keep = field(default=keep_nothing, repr=False, compare=False)
    since_s: float | None = None
