"""A debt: the second readings that one report owes, and the durable steps that it goes through.

KEPT -> OWED <-> AMENDING -> SETTLED
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class OwedStep(Enum):
    """A durable step of a debt."""

    KEPT = "kept"  # regions and grounds are there; the report may not be out yet
    ASKED = "asked"  # one more asking is counted; the debt stays OWED
    AMENDING = "amending"  # new verdicts are there; the new version may not be out yet
    OWED = "owed"  # the report is out in this version, and more is owed
    SETTLED = "settled"  # the last version is out; nothing is kept any more


OwedHook = Callable[[OwedStep, bool], None]
"""Called with each step twice: just before it is made durable (False) and just after (True)."""


@dataclass(frozen=True)
class Debt:
    """What one report owes.

    Attributes:
        version: of the report that is out; in AMENDING the next one is being written.
        gives_up: whether the version being written is the last though verdicts are missing.
        attempts: askings since the last verdict came.
        age_s: seconds that agents have lived with it.
    """

    study_key: str
    step: OwedStep
    version: int
    gives_up: bool
    attempts: int
    age_s: float
