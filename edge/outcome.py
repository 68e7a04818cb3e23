"""What one study came to: the report as data, before anyone prints or draws it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from edge.audit import Audit
from edge.finding import Decision, Finding, Route, SecondReading
from edge.guarantee import NOT_CALIBRATED, Guaranteed
from imaging.volume import StudyHeader, Triple

if TYPE_CHECKING:
    from edge.keep import Keep

NOT_A_DEVICE = "Not a medical device. For research and development only."


class Status(Enum):
    """Where a report stands."""

    FINAL = "final"
    PROVISIONAL = "provisional"  # the edge alone; a second reading may still amend it
    REJECTED = "rejected"


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


@dataclass(frozen=True)
class LedgerEntry:
    """One stage of the line: the time it was given when it began and that it took, seconds."""

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


class ChangeKind(Enum):
    """What an amendment changed."""

    ADDED = "finding added"
    REMOVED = "finding removed"
    PROBABILITY = "probability changed"
    NO_FINDING = "read again, no finding"
    GIVEN_UP = "given up"


@dataclass(frozen=True)
class Change:
    """One thing in which a version of a report differs from the one before.

    Attributes:
        version: in which it appeared.
        words: the change in a sentence.
        number: of the finding, None if it is about none.
        centre_mm: place of finding or candidate, None if it is about several.
        probability_before, probability_after: what stood for the place, and what stands now.
        verdict: the probability that the second reader gave, None if there was no verdict.
        model: of the second reader.
    """

    version: int
    kind: ChangeKind
    words: str
    number: int | None = None
    centre_mm: Triple | None = None
    probability_before: float | None = None
    probability_after: float | None = None
    verdict: float | None = None
    model: str = ""


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
        guaranteed: what is promised of missed nodules, or why nothing is.
        audit: what became of a scan without anything to ask about; None for any other.
        version: 1, and one more for each amendment of the same report.
        changes: of all amendments since version 1, in their order.
        finding_numbers: a number for each finding, which it keeps through all versions; empty
            for 1, 2, 3, … as in version 1.
        picture_note: in words, which pictures are not of this version, or are missing.
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
    guaranteed: Guaranteed = NOT_CALIBRATED
    audit: Audit | None = None
    version: int = 1
    changes: tuple[Change, ...] = ()
    finding_numbers: tuple[int, ...] = ()
    picture_note: str = ""
    status: Status = Status.FINAL
    rejection: Rejection | None = None

    @property
    def numbered(self) -> tuple[tuple[int, Finding], ...]:
        """The findings with their numbers, by falling probability."""
        numbers = self.finding_numbers or range(1, len(self.findings) + 1)
        return tuple(zip(numbers, self.findings, strict=True))

    @property
    def guarantee(self) -> str:
        """What is promised of missed nodules, in one line."""
        return self.guaranteed.text

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
