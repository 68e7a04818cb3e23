"""What one study came to: the report as data, before anyone prints or draws it.

Composes the report of a study: of one that was read, and of one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from edge.audit import Audit
from edge.findings import Decision, Finding, Route, SecondReading
from edge.guarantee import NOT_CALIBRATED, Guarantee
from imaging.volume import StudyHeader, Triple

if TYPE_CHECKING:
    pass


from collections.abc import Callable
from datetime import datetime

from edge.budget import LedgerEntry
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.guarantee import UNREAD, guarantee_of
from edge.job import Job
from edge.merge import Merged
from imaging.volume import Study

NOT_A_DEVICE = "Not a medical device. For research and development only."


class Status(Enum):
    """Where a report stands."""

    FINAL = "final"
    PROVISIONAL = "provisional"  # the edge alone; a second reading may still amend it
    REJECTED = "rejected"


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
        guarantee: what is promised of missed nodules, or why nothing is.
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
    guarantee: Guarantee = NOT_CALIBRATED
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


@dataclass(frozen=True)
class Assessment:
    """What the line came to think of one lung box, and on what grounds.

    ``audit`` is set where there was nothing to ask about.
    """

    plan: Plan
    answers: EscalationResult
    merged: Merged
    audit: Audit | None = None


@dataclass(frozen=True)
class Provenance:
    """What every report says of the line that made it.

    ``edge_model`` is model, version and engine in one line, ``guarantee`` the most that a report
    may promise; ``now`` gives the wall-clock time.
    """

    edge_model: str
    guarantee: Guarantee
    deadline_s: float
    now: Callable[[], datetime]


def compose(
    provenance: Provenance,
    job: Job,
    study: Study,
    assessment: Assessment,
    ledger: tuple[LedgerEntry, ...],
) -> Report:
    """The report of a study that was read."""
    plan, answers, merged = assessment.plan, assessment.answers, assessment.merged
    slice_mm = study.volume.geometry.spacing_mm[0]
    return Report(
        study_key=job.study_key,
        created=provenance.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=provenance.deadline_s,
        header=study.header,
        series_uid=study.volume.series_uid,
        findings=merged.findings,
        decisions=plan.decisions,
        ledger=ledger,
        second_reading=merged.second_reading,
        second_reading_reason=merged.reason,
        models=models_used(provenance.edge_model, answers),
        other_series=study.other_series,
        guarantee=guarantee_of(provenance.guarantee, plan, answers, slice_mm),
        audit=assessment.audit,
        status=_status(assessment),
    )


def compose_rejection(
    provenance: Provenance, job: Job, rejection: Rejection, ledger: tuple[LedgerEntry, ...]
) -> Report:
    """The report of a study that was not read."""
    return Report(
        study_key=job.study_key,
        created=provenance.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=provenance.deadline_s,
        ledger=ledger,
        second_reading_reason="the study was not read",
        models={"edge": provenance.edge_model},
        guarantee=UNREAD,
        status=Status.REJECTED,
        rejection=rejection,
    )


def models_used(edge_model: str, answers: EscalationResult) -> dict[str, str]:
    """Role to model: the edge's own, and the cloud's if it gave verdicts."""
    cloud = sorted({verdict.model for verdict in answers.verdicts.values()})
    return {"edge": edge_model} | ({"cloud": ", ".join(cloud)} if cloud else {})


def _status(assessment: Assessment) -> Status:
    """Provisional while a second reading that was wanted of a cloud is not all there."""
    unread = assessment.merged.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING)
    wanted = unread and not assessment.answers.switched_off
    return Status.PROVISIONAL if wanted else Status.FINAL
