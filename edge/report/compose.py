"""Compose the report of a study: one that was read, refused, or ignored by a rule."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime

from edge.audit_sampling import Audit
from edge.budget import LedgerEntry
from edge.clinical.brock import brock_of
from edge.clinical.lung_rads import LungRads, suggest
from edge.clinical.sidecar import UNKNOWN, Clinical
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading, crowds
from edge.guarantee import UNREAD, Guarantee, guarantee_of
from edge.job import Job
from edge.limitations import limitations_of
from edge.merge import Merged
from edge.report.model import Change, ChangeKind, Rejection, Report, Status
from edge.report.wording import characterizations, next_steps, result_of
from edge.rules.rule import BY_DEFAULT, AppliedRule
from edge.rules.selection import IgnoredStudy
from imaging.location import locator_of
from imaging.preprocess import Preprocessed
from imaging.volume import LimitationKind, Study, StudyHeader

AMENDED_LATER = "the report will be amended when the second reading comes"
NOT_AMENDED = "this report will not be amended, read the study again for a second reading"


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
    rule: AppliedRule = BY_DEFAULT,
    clinical: Clinical = UNKNOWN,
) -> Report:
    """Compose the report of a study that was read."""
    plan, answers, merged = assessment.plan, assessment.answers, assessment.merged
    limitations = limitations_of(study, box, merged.findings, provenance.guarantee.terms)
    # a later version may come while a cloud is set up, and a verdict is missing
    may_change = merged.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING)
    later = AMENDED_LATER if provenance.amends else NOT_AMENDED
    report = replace(
        _report_of(provenance, job, study, ledger, rule),
        findings=merged.findings,
        possible=merged.possible,
        decisions=plan.decisions,
        second_reading=merged.second_reading,
        second_reading_reason=reading_reason(
            merged, merged.uncharacterized if provenance.amends else (), later if may_change else ""
        ),
        locator=locator_of(study, box),
        models=models_used(provenance.edge_model, answers),
        coverage=box.measures.coverage,
        acquisition=box.measures.acquisition,
        limitations=limitations,
        guarantee=guarantee_of(provenance.guarantee, plan, answers, limitations),
        audit=assessment.audit,
        status=Status.PROVISIONAL if may_change else Status.FINAL,
        clinical=clinical,
    )
    return completed(report)


def reading_reason(merged: Merged, pending: Collection[int], later: str = "") -> str:
    """Return what was read again, what is missing and why, and what happens ``later``.

    The characterizations of the candidates in ``pending`` are still to come.
    """
    coming = [i for i in merged.uncharacterized if i in pending]
    counts = {"still to come": len(coming), "missing": len(merged.uncharacterized) - len(coming)}
    missing = [f"{characterizations(n)} are {state}" for state, n in counts.items() if n]
    told = "; ".join([merged.reason, *missing]) + (merged.why and f": {merged.why}")
    return f"{told}; {later}" if later else told


def completed(report: Report) -> Report:
    """Return the report with all that follows from it: places, groups, scores, and its result."""
    locator, header, clinical = report.locator, report.header, report.clinical
    locations = {n: locator.locate(one.centre_mm) for n, one in report.listed} if locator else {}
    brock = {
        n: brock_of(finding, locations.get(n), len(report.findings), header, clinical)
        for n, finding in report.numbered
    }
    numbers = [n for n, _ in report.numbered]
    is_diffuse = any(one.kind is LimitationKind.DIFFUSE for one in report.limitations)
    crowded = crowds(report.findings) if is_diffuse else ()
    located = replace(
        report,
        locations=locations,
        groups=tuple(tuple(numbers[i] for i in group) for group in crowded),
        brock={n: result for n, result in brock.items() if result is not None},
        lung_rads=_lung_rads(report),
    )
    return replace(located, result=result_of(located), next_steps=next_steps(located))


def _lung_rads(report: Report) -> LungRads | None:
    if not report.rule.screening or report.status is Status.IGNORED:
        return None
    return suggest(report.numbered, report.limitations, report.clinical, was_read=report.was_read)


def compose_rejection(
    provenance: Provenance,
    job: Job,
    study: Study | None,
    rejection: Rejection,
    ledger: tuple[LedgerEntry, ...],
    rule: AppliedRule = BY_DEFAULT,
) -> Report:
    """Compose the report of a study that was refused; ``study`` is what of it could be read."""
    report = replace(
        _report_of(provenance, job, study, ledger, rule),
        second_reading_reason="the study was not read",
        guarantee=UNREAD,
        status=Status.REJECTED,
        rejection=rejection,
    )
    return completed(report)


def compose_ignored(
    provenance: Provenance, job: Job, ignored: IgnoredStudy, ledger: tuple[LedgerEntry, ...]
) -> Report:
    """Compose the report of a study that rules ignore."""
    report = replace(
        _report_of(provenance, job, ignored.study, ledger, ignored.applied),
        second_reading_reason=ignored.reason,
        guarantee=UNREAD,
        status=Status.IGNORED,
    )
    return completed(report)


def _report_of(
    provenance: Provenance,
    job: Job,
    study: Study | None,
    ledger: tuple[LedgerEntry, ...],
    rule: AppliedRule,
) -> Report:
    """Return what every report says, and what is known of its study."""
    return Report(
        study_key=job.study_key,
        created=provenance.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=provenance.deadline_s,
        version=job.version,
        changes=_more_images(job),
        header=study.header if study else StudyHeader(),
        series_uid=study.volume.series_uid if study else "",
        other_series=(*(study.other_series if study else ()), *job.notes),
        ledger=ledger,
        models={"edge": provenance.edge_model},
        rule=rule,
    )


def _more_images(job: Job) -> tuple[Change, ...]:
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
