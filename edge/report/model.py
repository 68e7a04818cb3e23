"""The report of one study as data.

`edge.report.compose` composes it, `edge.report.write` writes it to files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edge.audit_sampling import Audit
from edge.budget import LedgerEntry
from edge.clinical.brock import Brock
from edge.clinical.lung_rads import LungRads
from edge.clinical.sidecar import UNKNOWN, Clinical
from edge.findings import Decision, Finding, Route, SecondReading
from edge.guarantee import NOT_CALIBRATED, Guarantee
from edge.rules.rule import BY_DEFAULT, AppliedRule
from imaging.acquisition import Acquisition
from imaging.coverage import Coverage
from imaging.location import Location, Locator
from imaging.volume import Limitation, LimitationKind, StudyHeader, Triple

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
    OTHER_PATIENT = "same study with another patient ID received"
    NOT_JOINED = "later images not read"
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
        locator: what locations follow from, for amendments; None for a study that was not read, and
            for a report that was read from its file.
        models: role (``edge``, ``cloud``) to model, version and engine in one line.
        other_series: series of the same folder that were not read.
        acquisition: what the voxels tell of scanner and protocol, for drift.
        limitations: what of this study lies outside the models' calibration.
        audit: of a scan in which no candidate was uncertain; None for any other.
        version: 1, and one more for each amendment.
        changes: of all amendments since version 1, in their order.
        finding_numbers: a number for each finding, then for each possible finding. A candidate
            keeps its number in all versions. Empty means 1, 2, 3, … as in version 1.
        pictured: the numbers that were drawn in the lung box when the study was read.
        outlined: of a report that was read from its file, `drawn_outlines`.
        picture_note: which pictures belong to an older version, or are missing.
        rejection: set exactly when `status` is `Status.REJECTED`.

    These follow from the others (`edge.report.compose.completed`):
        result: one sentence.
        next_steps: what a reader must know and do, in sentences, the most urgent first.
        locations: image, side and zone by number of finding or possible finding.
        groups: numbers of findings that lie in one consolidation, where the disease is diffuse.
        brock: probability of cancer by number of a finding; none for a child.
        lung_rads: the suggested category of a screening examination; None for any other.
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
    acquisition: Acquisition | None = None
    limitations: tuple[Limitation, ...] = ()
    guarantee: Guarantee = NOT_CALIBRATED
    audit: Audit | None = None
    version: int = 1
    changes: tuple[Change, ...] = ()
    finding_numbers: tuple[int, ...] = ()
    pictured: tuple[int, ...] = ()
    outlined: tuple[int, ...] = ()
    picture_note: str = ""
    status: Status = Status.FINAL
    rejection: Rejection | None = None
    rule: AppliedRule = BY_DEFAULT
    clinical: Clinical = UNKNOWN
    result: str = ""
    next_steps: tuple[str, ...] = ()
    locations: Mapping[int, Location] = field(default_factory=dict)
    groups: tuple[tuple[int, ...], ...] = ()
    brock: Mapping[int, Brock] = field(default_factory=dict)
    lung_rads: LungRads | None = None

    @property
    def was_read(self) -> bool:
        """Whether the study was read: it was neither rejected nor ignored."""
        return self.status not in (Status.REJECTED, Status.IGNORED)

    @property
    def numbered(self) -> tuple[tuple[int, Finding], ...]:
        """The findings with their numbers, by falling probability."""
        return self.listed[: len(self.findings)]

    @property
    def numbered_possible(self) -> tuple[tuple[int, Finding], ...]:
        """The possible findings with their numbers, by falling probability."""
        return self.listed[len(self.findings) :]

    @property
    def listed(self) -> tuple[tuple[int, Finding], ...]:
        """The findings, then the possible findings, with their numbers."""
        listed = (*self.findings, *self.possible)
        numbers = self.finding_numbers or range(1, len(listed) + 1)
        return tuple(zip(numbers, listed, strict=True))

    def location_of(self, finding: Finding) -> Location | None:
        """Return image, side and zone of a finding in one of the lists; None if not known."""
        return next((self.locations.get(n) for n, one in self.listed if one is finding), None)

    @property
    def drawn_outlines(self) -> tuple[int, ...]:
        """The numbers whose pictures show the outline by the cloud.

        A picture of the lung box shows what was known when the study was read.
        """
        new = self.version == self.read_version
        return self.outlined or tuple(
            n for n, one in self.listed if one.outline and (new or n not in self.pictured)
        )

    @property
    def brock_of_patient(self) -> Brock | None:
        """The result of the first finding, whose inputs of the patient are those of all."""
        return next(iter(self.brock.values()), None)

    @property
    def shows_whole_lungs(self) -> bool:
        """Whether nothing of the lungs is known to lie outside the images."""
        return all(one.kind is not LimitationKind.COVERAGE for one in self.limitations)

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
    def read_version(self) -> int:
        """The version in which the study was read: 1, or a later one with more images."""
        more = ChangeKind.MORE_IMAGES
        return max((one.version for one in self.changes if one.kind is more), default=1)

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
