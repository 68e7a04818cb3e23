"""What one study came to: the report as data, before anyone prints or draws it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edge.finding import Decision, Finding, Route, SecondReading
from imaging.study import StudyHeader

NO_GUARANTEE = "no guarantee: the thresholds are not calibrated on held-back cases"
NOT_A_DEVICE = "Not a medical device. For research and development only."


class Status(Enum):
    """Where a report stands."""

    FINAL = "final"
    PROVISIONAL = "provisional"  # the edge alone; a second reading may still amend it
    REJECTED = "rejected"


def new_study_key() -> str:
    """A random name for one reading of one study; it says nothing of the patient."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Job:
    """One study to read: the folder or file ``source``, and the folder ``out`` for its report.

    A study that is read again after a crash keeps its ``study_key``, so that the cloud knows it.
    """

    source: Path
    out: Path
    study_key: str = field(default_factory=new_study_key)


@dataclass(frozen=True)
class LedgerEntry:
    """One stage of the line: the budget it found when it began and the time it took, seconds."""

    stage: str
    budget_s: float
    took_s: float


@dataclass(frozen=True)
class Rejection:
    """Why a study was not read: ``kind`` is a class name, ``reason`` says what to do.

    ``internal`` tells a fault of this program from a fault of the study.
    """

    kind: str
    reason: str
    file: str = ""
    internal: bool = False


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is said of one study, in one place.

    Attributes:
        study_key: random name of this reading; no patient identifier.
        created: wall-clock time of the report, ISO 8601 with zone.
        source: the folder or file that was read.
        findings: what the reader should look at, by falling probability.
        decisions: every candidate of the edge with its route, dismissed ones included.
        ledger: time by stage, in the order of the line.
        second_reading_reason: in words, why it is what it is.
        models: role (``edge``, ``cloud``) to model, version and engine in one line.
        other_series: series of the same folder that were passed over.
        version: 1, and one more for each amendment of the same report.
        rejection: set when, and only when, `status` is `Status.REJECTED`.
    """

    study_key: str
    created: str
    source: Path
    deadline_s: float
    header: StudyHeader = field(default_factory=StudyHeader)
    series_uid: str = ""
    findings: tuple[Finding, ...] = ()
    decisions: tuple[Decision, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()
    second_reading: SecondReading = SecondReading.MISSING
    second_reading_reason: str = ""
    models: dict[str, str] = field(default_factory=dict)
    other_series: tuple[str, ...] = ()
    guarantee: str = NO_GUARANTEE
    version: int = 1
    status: Status = Status.FINAL
    rejection: Rejection | None = None

    @property
    def awaits_second_reading(self) -> bool:
        """Whether a cloud was asked, or should have been, and did not answer everything."""
        return self.status is Status.PROVISIONAL

    @property
    def took_s(self) -> float:
        """The time of all stages together, in seconds."""
        return sum(entry.took_s for entry in self.ledger)

    @property
    def dismissed(self) -> tuple[Decision, ...]:
        """The candidates that the edge dismissed, by falling score."""
        return tuple(d for d in self.decisions if d.route is Route.DISMISS)

    @property
    def highest_dismissed_score(self) -> float:
        """The score of the best dismissed candidate, 0 if there is none."""
        return max((d.candidate.score for d in self.dismissed), default=0.0)
