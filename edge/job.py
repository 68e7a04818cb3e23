"""One study to read, and its random key."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path


def new_study_key() -> str:
    """Return a random name for one reading of one study; it does not identify the patient."""
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
