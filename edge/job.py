"""One study to read, and the random key by which everything else names it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path


def new_study_key() -> str:
    """A random name for one reading of one study; it says nothing of the patient."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Job:
    """One study to read: the folder or file ``source``, and the folder ``out`` for its report.

    A study that is read again after a crash keeps its ``study_key``, so that the cloud knows it.
    ``since_s`` is the time on the pipeline's clock from which its budget runs. None means now.
    """

    source: Path
    out: Path
    study_key: str = field(default_factory=new_study_key)
    since_s: float | None = None
