"""One study to read, and its random key."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

KEY_CHARACTERS = 32
"""Length of a study key."""


def new_study_key() -> str:
    """Return a random name for one reading of one study; it does not identify the patient."""
    return secrets.token_hex(KEY_CHARACTERS // 2)


@dataclass(frozen=True)
class Job:
    """One study to read: the folder or file ``source``, and the folder ``out`` for its report.

    A study that is read again after a crash keeps its ``study_key``, so that the cloud knows it.
    ``since_s`` is the time on the pipeline's clock from which its budget runs. None means now.
    ``more_images`` has the version of the report and the number of images for every part of the
    study that arrived after its report; the last one is the version to write. ``notes`` are lines
    for the report about changed files of its images.
    """

    source: Path
    out: Path
    study_key: str = field(default_factory=new_study_key)
    since_s: float | None = None
    more_images: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The version of the report to write."""
        return self.more_images[-1][0] if self.more_images else 1
