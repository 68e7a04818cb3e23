"""The report of one study as data, and how it is composed.

`edge.report.write` writes it to files, `edge.report.terminal` prints it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path

from edge.audit_sampling import Audit
from edge.budget import LedgerEntry
from edge.clinical.brock import Brock, brock_of, notes_of
from edge.clinical.lung_rads import LungRads, suggest
from edge.clinical.sidecar import UNKNOWN, Clinical
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import Decision, Finding, Route, SecondReading, crowds
from edge.guarantee import NOT_CALIBRATED, UNREAD, Guarantee, guarantee_of
from edge.job import Job
from edge.limitations import limitations_of
from edge.merge import Merged
from edge.rules.rule import BY_DEFAULT, AppliedRule
from edge.rules.selection import IgnoredStudy
from imaging.coverage import Coverage
from imaging.location import Location, Locator, locator_of
from imaging.preprocess import Preprocessed
from imaging.volume import Limitation, LimitationKind, Study, StudyHeader, Triple

AMENDED_LATER = "the report will be amended when the second reading comes"
NOT_AMENDED = "this report will not be amended, read the study again for a second reading"
NOT_A_DEVICE = "Not a medical device. For research and development only."


class Status(Enum):
    """Whether a report can still change."""

    FINAL = "final"
    PROVISIONAL = "provisional"  # second readings are pending: it may be amended
    REJECTED = "rejected"
    IGNORED = "ignored"  # a rule says not to read it


@dataclass(frozen=True)
class Rejection:
    """Why a study was not read: ``kind`` is a class name, ``reason`` says what to do.

    ``internal`` distinguishes an error of this program from an error of the study.
    """

    kind: str
    reason: str
    file: str = ""
    internal: bool = False


class ChangeKind(Enum):
    """The kinds of change that an amendment makes."""

    ADDED = "finding added"
    REMOVED = "finding removed"
    POSSIBLE_ADDED = "possible finding added"
    POSSIBLE_REMOVED = "possible finding removed"
    RAISED = "possible finding raised to finding"
    LOWERED = "finding lowered to possible finding"
    PROBABILITY = "probability changed"
    NO_FINDING = "read again, no finding"
    GIVEN_UP = "given up"
    CHANGED_IMAGES = "changed images received"
    MORE_IMAGES = "more images arrived"  # the study was read again, its findings have new numbers


@dataclass(frozen=True)
class Change:
    """One difference between two versions of a report.

    Attributes:
        version: the later one.
        number: of the finding or possible finding, None if it is neither.
        centre_mm: of finding or candidate, None if several are meant.
        probability_before, probability_after: in the two versions.
        verdict: the probability that the cloud gave, None without a verdict.
        model: of the cloud.
    """

    version: int
    kind: ChangeKind
    text: str
    number: int | None = None
    centre_mm: Triple | None = None
    probability_before: float | None = None
    probability_after: float | None = None
    verdict: float | None = None
    model: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """All that is reported of one study.

    Attributes:
        study_key: random name of this reading; it does not identify the patient.
        created: wall-clock time of the report, ISO 8601 with zone.
        findings: by falling probability.
        possible: the possible findings, by falling probability. Limitations, groups and rates of
            false positives leave them out.
        ledger: time by stage, in the order of the pipeline.
        second_reading_reason: what was read again, and why not all; what happens next.
        locator: gives each finding its image, side and zone; None for a study that was not read.
        models: role (``edge``, ``cloud``) to model, version and engine in one line.
        other_series: series of the same folder that were not read.
        coverage: how much of the lungs the volume shows.
        limitations: what of this study lies outside the models' calibration.
        guarantee: of missed nodules, or why there is none.
        audit: of a scan in which no candidate was uncertain; None for any other.
        version: 1, and one more for each amendment.
        changes: of all amendments since version 1, in their order.
        finding_numbers: a number for each finding, then for each possible finding. A candidate
            keeps its number in all versions. Empty means 1, 2, 3, … as in version 1.
        pictured: the numbers that were drawn in the lung box when the study was read.
        picture_note: which pictures belong to an older version, or are missing.
        rejection: set exactly when `status` is `Status.REJECTED`.
        rule: the rule that took the series, or that ignores the study.
        clinical: what is known of the patient beside images and header.
    """

    study_key: str
    created: str
    source: Path
    deadline_s: float
    header: StudyHeader = field(default_factory=StudyHeader)
    series_uid: str = ""
    findings: tuple[Finding, ...] = ()
    possible: tuple[Finding, ...] = ()
    decisions: tuple[Decision, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()
    second_reading: SecondReading = SecondReading.MISSING
    second_reading_reason: str = ""
    locator: Locator | None = None
    models: dict[str, str] = field(default_factory=dict)
    other_series: tuple[str, ...] = ()
    coverage: Coverage | None = None
    limitations: tuple[Limitation, ...] = ()
    guarantee: Guarantee = NOT_CALIBRATED
    audit: Audit | None = None
    version: int = 1
    changes: tuple[Change, ...] = ()
    finding_numbers: tuple[int, ...] = ()
    pictured: tuple[int, ...] = ()
    picture_note: str = ""
    status: Status = Status.FINAL
    rejection: Rejection | None = None
    rule: AppliedRule = BY_DEFAULT
    clinical: Clinical = UNKNOWN

    @property
    def was_read(self) -> bool:
        """Whether the study was read: it was neither rejected nor ignored."""
        return self.status not in (Status.REJECTED, Status.IGNORED)

    @property
    def numbered(self) -> tuple[tuple[int, Finding], ...]:
        """The findings with their numbers, by falling probability."""
        return self._all_numbered[: len(self.findings)]

    @property
    def numbered_possible(self) -> tuple[tuple[int, Finding], ...]:
        """The possible findings with their numbers, by falling probability."""
        return self._all_numbered[len(self.findings) :]

    @property
    def _all_numbered(self) -> tuple[tuple[int, Finding], ...]:
        listed = (*self.findings, *self.possible)
        numbers = self.finding_numbers or range(1, len(listed) + 1)
        return tuple(zip(numbers, listed, strict=True))

    def location_of(self, finding: Finding) -> Location | None:
        """Return image, side and zone of the finding; None where the report has no locator."""
        return self.locator.locate(finding.centre_mm) if self.locator else None

    def brock_of(self, finding: Finding) -> Brock | None:
        """Return the probability of cancer by the Brock model; None where it does not apply."""
        location, count = self.location_of(finding), len(self.findings)
        return brock_of(finding, location, count, self.header, self.clinical)

    @property
    def brock_of_patient(self) -> Brock | None:
        """The result of the first finding, whose inputs of the patient are those of all."""
        return next((self.brock_of(finding) for finding in self.findings), None)

    @property
    def brock_notes(self) -> tuple[str, ...]:
        """Where the inputs of the Brock model differ from those of its paper."""
        return notes_of(self.header, self.clinical)

    @property
    def lung_rads(self) -> LungRads | None:
        """The suggested category of a screening examination; None for any other."""
        if not self.rule.screening or self.status is Status.IGNORED:
            return None
        return suggest(self.numbered, self.limitations, self.clinical, was_read=self.was_read)

    @property
    def second_reading_title(self) -> str:
        """How the second reading ended, in a few words."""
        if self.second_reading is SecondReading.OFF:
            return "Edge only"
        if self.second_reading is SecondReading.COMPLETE and not self.uncertain:
            audited = any(finding.route is Route.DISMISS for finding in self.findings)
            return "Second reading by audit" if audited else "Second reading not needed"
        return f"Second reading {self.second_reading.value}"

    @property
    def uncertain(self) -> tuple[Decision, ...]:
        """The candidates that the edge could not decide alone."""
        return tuple(d for d in self.decisions if d.route is Route.ESCALATE)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of findings that lie in one consolidation, where the disease is diffuse."""
        if all(one.kind is not LimitationKind.DIFFUSE for one in self.limitations):
            return ()
        numbers = [number for number, _ in self.numbered]
        return tuple(tuple(numbers[i] for i in group) for group in crowds(self.findings))

    @property
    def took_s(self) -> float:
        """Seconds of all stages together."""
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
    """The result of detection in one lung box: the plan, the verdicts, and both lists of findings.

    ``audit`` is set where no candidate was uncertain.
    """

    plan: Plan
    answers: EscalationResult
    merged: Merged
    audit: Audit | None = None


@dataclass(frozen=True)
class Provenance:
    """What every report says of the pipeline that made it.

    ``edge_model`` is model, version and engine in one line. ``guarantee`` is the most that a report
    may guarantee. ``now`` gives the wall-clock time. ``amends`` says whether this program amends
    its reports when a second reading comes later.
    """

    edge_model: str
    guarantee: Guarantee
    deadline_s: float
    now: Callable[[], datetime]
    amends: bool = False


def compose(
    provenance: Provenance,
    job: Job,
    study: Study,
    assessment: Assessment,
    box: Preprocessed,
    ledger: tuple[LedgerEntry, ...],
) -> Report:
    """Compose the report of a study that was read."""
    plan, answers, merged = assessment.plan, assessment.answers, assessment.merged
    limitations = limitations_of(study, box, merged.findings, provenance.guarantee.terms)
    # a later version may come while a cloud is set up and the second reading is incomplete
    may_change = merged.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING)
    later = AMENDED_LATER if provenance.amends else NOT_AMENDED
    return Report(
        study_key=job.study_key,
        created=provenance.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=provenance.deadline_s,
        version=job.version,
        changes=more_images(job),
        header=study.header,
        series_uid=study.volume.series_uid,
        findings=merged.findings,
        possible=merged.possible,
        decisions=plan.decisions,
        ledger=ledger,
        second_reading=merged.second_reading,
        second_reading_reason=f"{merged.reason}; {later}" if may_change else merged.reason,
        locator=locator_of(study, box),
        models=models_used(provenance.edge_model, answers),
        other_series=(*study.other_series, *job.notes),
        coverage=box.coverage,
        limitations=limitations,
        guarantee=guarantee_of(provenance.guarantee, plan, answers, limitations),
        audit=assessment.audit,
        status=Status.PROVISIONAL if may_change else Status.FINAL,
    )


def compose_rejection(
    provenance: Provenance,
    job: Job,
    study: Study | None,
    rejection: Rejection,
    ledger: tuple[LedgerEntry, ...],
    rule: AppliedRule = BY_DEFAULT,
) -> Report:
    """Compose the report of a study that was refused; ``study`` is what of it could be read."""
    return Report(
        study_key=job.study_key,
        created=provenance.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=provenance.deadline_s,
        header=study.header if study else StudyHeader(),
        series_uid=study.volume.series_uid if study else "",
        other_series=(*(study.other_series if study else ()), *job.notes),
        version=job.version,
        changes=more_images(job),
        ledger=ledger,
        second_reading_reason="the study was not read",
        models={"edge": provenance.edge_model},
        guarantee=UNREAD,
        status=Status.REJECTED,
        rejection=rejection,
        rule=rule,
    )


def compose_ignored(
    provenance: Provenance, job: Job, ignored: IgnoredStudy, ledger: tuple[LedgerEntry, ...]
) -> Report:
    """Compose the report of a study that rules ignore."""
    unread = Rejection(ignored.kind, ignored.reason)
    report = compose_rejection(provenance, job, ignored.study, unread, ledger)
    return replace(
        report,
        second_reading_reason=ignored.reason,
        status=Status.IGNORED,
        rejection=None,
        rule=ignored.applied,
    )


def more_images(job: Job) -> tuple[Change, ...]:
    """Return the changes by images that arrived after a report was out."""
    return tuple(
        Change(
            version,
            ChangeKind.MORE_IMAGES,
            f"{count} more image{' was' if count == 1 else 's were'} added: the whole study was"
            " read again, and its findings are numbered from 1",
        )
        for version, count in job.more_images
    )


def models_used(edge_model: str, answers: EscalationResult) -> dict[str, str]:
    """Return role to model: the edge's own, and the cloud's if it gave verdicts."""
    cloud = sorted({verdict.model for verdict in answers.verdicts.values()})
    return {"edge": edge_model} | ({"cloud": ", ".join(cloud)} if cloud else {})
