"""The pipeline of one study, from its files to its report. Read this file first.

    read -> preprocess -> screen -> decide -> escalate -> merge -> draw -> report

`run` has no branch. A stage returns a value for every expected outcome, a lost link among them.
Only an exception ends a study, and `read_and_report` reports that too. In the agent
(`overread-edge run`) this file is one of five steps:

    inbox       agent/inbox.py    waits until a study is complete; from then its budget runs
    claim       agent/claim.py    moves it to the work folder; store/studies.py records each step
    THIS        agent/study.py    calls `read_and_report`, which writes the report
    outbox      report/write.py   writes report.json last: if it exists, the report is complete
    amendment   amend/amender.py  requests what store/pending.py persisted; writes a new version

`agent/loop.py` takes these steps in turn. `assemble.py` builds a `Pipeline` from the settings.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from edge.atomic_files import is_transient
from edge.audit_sampling import audit_of, is_sampled
from edge.budget import Budget
from edge.clinical.sidecar import clinical_of
from edge.decide import ROI_SIDE, Plan, Situation
from edge.errors import UnfitFolder
from edge.escalation.client import SecondReader
from edge.findings import Finding
from edge.job import Job
from edge.merge import Merged, merge
from edge.reader import EdgeReader
from edge.report.compose import Assessment, Provenance, compose, compose_ignored, compose_rejection
from edge.report.evidence import NO_EVIDENCE, OUTLINES, SOURCE, EvidenceFiles, outlines_file
from edge.report.model import Rejection, Report
from edge.report.pictures import PICTURED_POSSIBLE, Pictures, first_note, picture_name
from edge.report.write import ReportPaths
from edge.rules.rule import NO_RULES, AppliedRule, Rules
from edge.rules.selection import IgnoredStudy
from edge.selection import SELECTION_POLICY, SelectionPolicy
from edge.settings.core import EdgeSettings
from imaging.errors import OnlyLocalizer, StudyError, is_machine_fault
from imaging.isolation.in_turn import ReadersInTurn
from imaging.preprocess import Preprocessed
from imaging.volume import Study, Volume
from process import tracing
from protos.messages import Priority

PersistPending = Callable[[Report, Assessment, EdgeReader, Preprocessed], None]
"""Saves what is pending for a report that is about to go out, and what it was made from."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Pipeline:
    """The stages, opened once and used for every study.

    Attributes:
        read: a folder or file to a study; raises `imaging.errors.StudyError`.
        admit: returns the job with the folder for its report, the same when it is called again;
            gets None for a study that cannot be read. Raises `UnfitFolder` where the folder holds
            what the report must not replace.
        preprocess: a volume to the lung box; raises `imaging.errors.NoLung`.
        decide: chooses the candidates to send; the study key is for the log.
        draw: draws findings and possible findings; the last argument is how many of these.
        second_reader: the cloud, or `NoSecondReader`.
        persist_pending: stores the pending reads, for an amendment of the report.
        read_peak_mb: peak memory of the last child process that read a study, in MiB.
        rules: those that ``read`` obeys, which a study names its rule of.
        ahead: reads the next study ahead; None where there is none.
    """

    start_budget: Callable[[], Budget]
    read: Callable[[Path], Study]
    preprocess: Callable[[Volume, Path], Preprocessed]
    reader: EdgeReader
    decide: Callable[[Situation, str], Plan]
    second_reader: SecondReader
    draw: Callable[[Sequence[Finding], Sequence[Finding], Preprocessed, Path, int], Pictures]
    persist_pending: PersistPending
    write: Callable[[Report, Pictures, Path, EvidenceFiles], ReportPaths]
    provenance: Provenance
    settings: EdgeSettings
    policy: SelectionPolicy = SELECTION_POLICY
    admit: Callable[[Job, Study | None], Job] = lambda job, _study: job
    rules: Rules = NO_RULES
    read_peak_mb: Callable[[], float] = lambda: 0.0
    ahead: ReadersInTurn | None = None

    def rule_named(self, name: str) -> AppliedRule:
        """Return what the rule of this name says."""
        return AppliedRule.of(self.rules.named(name), Priority(self.settings.priority))


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The report of one study, and its files.

    Its ledger is complete. The ledger in the files ends where their writing began. ``evidence`` and
    ``pictures`` are what was written beside the report.
    """

    report: Report
    paths: ReportPaths
    evidence: EvidenceFiles = field(default_factory=dict)
    pictures: Pictures = field(default_factory=dict)


def run(pipeline: Pipeline, job: Job, budget: Budget) -> StudyResult:
    """Take one study from its files to its report."""
    with budget.stage("read"):
        study = pipeline.read(job.source)
        clinical = clinical_of(job.source)
        job = pipeline.admit(job, study)
    with budget.stage("preprocess"):
        try:
            box = pipeline.preprocess(study.volume, job.source)
        except StudyError as error:
            error.study, error.rule = study, study.rule
            raise
    rule = pipeline.rule_named(study.rule)
    assessment = detect(pipeline, box, budget, job.study_key, rule.priority)
    with budget.stage("draw"):
        # where waiting has left the reserve alone, the report must not wait for these
        most_possible = PICTURED_POSSIBLE if budget.left_s(pipeline.settings.reserve_s) else 0
        pictures, note = _draw(pipeline, assessment.merged, box, job, most_possible)
    with budget.stage("report"):
        report = compose(
            pipeline.provenance, job, study, assessment, box, budget.ledger_so_far, rule, clinical
        )
        pictured = tuple(number for number, _ in report.listed if picture_name(number) in pictures)
        report = replace(report, pictured=pictured, picture_note=note)
        pipeline.persist_pending(report, assessment, pipeline.reader, box)
        evidence = {
            SOURCE: _headers(study.headers, job),
            OUTLINES: outlines_file(report.listed, box.geometry),
        }
        paths = pipeline.write(report, pictures, job.out, evidence)
    return StudyResult(replace(report, ledger=budget.ledger), paths, evidence, pictures)


def detect(
    pipeline: Pipeline,
    box: Preprocessed,
    budget: Budget,
    study_key: str,
    priority: Priority | None = None,
) -> Assessment:
    """Find the nodules of a lung box: the stages between the files and the report.

    ``priority`` is that for the cloud; None for that of the settings.
    """
    reader, second, settings = pipeline.reader, pipeline.second_reader, pipeline.settings
    with budget.stage("screen"):
        candidates = reader.screen(box)
        if box.proceed:
            box.proceed()
    with budget.stage("decide"):
        link = second.estimate()
        left_s = budget.left_s(settings.reserve_s)
        sampled = is_sampled(study_key, settings.cloud.audit_rate)
        cloud = settings.cloud
        situation = Situation(
            candidates, reader.thresholds, link, left_s, ROI_SIDE**3, cloud.max_rois,
            policy=pipeline.policy, audited=sampled,
        )  # fmt: skip
        plan = replace(pipeline.decide(situation, study_key), inner=box.inner)
    with budget.stage("escalate", settings.reserve_s) as span:
        answers = second.read(plan, box, budget, study_key, priority)
        span.set_attributes(tracing.attributes(rois=len(plan.send), **answers.counts))
    with budget.stage("merge"):
        merged = merge(plan, answers, reader.thresholds, reader.weights, box.geometry)
        rate, thresholds = settings.cloud.audit_rate, reader.thresholds
        audit = audit_of(plan, answers, thresholds, rate=rate, sampled=sampled)
    return Assessment(plan, answers, merged, audit)


def read_and_report(pipeline: Pipeline, job: Job) -> StudyResult:
    """Run the pipeline; a study that cannot be read gets a report that says why.

    Raises:
        UnfitFolder: the folder for the report holds something else; nothing was written.
        OSError, MemoryError: the report cannot be written, or the machine is at fault.
        sqlite3.Error: the pending reads cannot be stored now, or the database is damaged.
    """
    budget = pipeline.start_budget()
    if job.since_s is not None:
        budget.backdate(job.since_s)
    try:
        with tracing.study(job.study_key):
            result = run(pipeline, job, budget)
    except IgnoredStudy as error:
        result = _ignore(pipeline, job, budget, error)
    except OnlyLocalizer as error:
        ignored = IgnoredStudy(error.reason, error.file, pipeline.rule_named(error.rule))
        ignored.study = _refused_study(job.source)
        result = _ignore(pipeline, job, budget, ignored)
    except StudyError as error:
        rejection = Rejection(error.kind, error.reason, str(error.file))
        result = _reject(pipeline, job, budget, rejection, error.study, error.rule)
    except UnfitFolder:
        raise
    except Exception as error:  # a fault of the program must not prevent the report
        if is_transient(error) or is_machine_fault(error) or isinstance(error, sqlite3.Error):
            raise  # the study may be sound: the caller waits and reads it again
        log.exception("study failed", study_key=job.study_key)
        kind, reason = type(error).__name__, f"internal error: {error}"
        result = _reject(pipeline, job, budget, Rejection(kind, reason, internal=True))
    report = result.report
    log.info(
        "study reported",
        study_key=report.study_key,
        status=report.status.value,
        findings=len(report.findings),
        possible_findings=len(report.possible),
        candidates=len(report.decisions),
        highest_dismissed_score=round(report.highest_dismissed_score, 4),
        second_reading=report.second_reading.value,
        second_reading_reason=report.second_reading_reason,
        took_s=round(report.took_s, 3),
        rejection=report.rejection.kind if report.rejection else None,
        rule=report.rule.name,
    )
    return result


def _draw(
    pipeline: Pipeline, merged: Merged, box: Preprocessed, job: Job, most_possible: int
) -> tuple[Pictures, str]:
    """Draw the pictures; an error costs pictures, and the note says which, but no finding."""
    counts = len(merged.findings), len(merged.possible)
    try:
        pictures = pipeline.draw(merged.findings, merged.possible, box, job.out, most_possible)
    except OSError:
        raise  # the folder cannot be written, and so neither can the report
    except Exception:  # whatever it is: the findings are worth more than their pictures
        log.exception("no picture drawn", study_key=job.study_key)
        return {}, first_note(*counts, {}, most_possible)
    return pictures, first_note(*counts, pictures, most_possible) if pictures else ""


def _ignore(pipeline: Pipeline, job: Job, budget: Budget, ignored: IgnoredStudy) -> StudyResult:
    job = pipeline.admit(job, ignored.study)
    with budget.stage("report"):
        report = compose_ignored(pipeline.provenance, job, ignored, budget.ledger_so_far)
        paths = pipeline.write(report, {}, job.out, NO_EVIDENCE)
    return StudyResult(replace(report, ledger=budget.ledger), paths)


def _headers(make: Callable[[], bytes] | None, job: Job) -> bytes:
    """Return the headers of the source images; an error costs DICOM objects, but no finding."""
    try:
        return make() if make else b""
    except Exception as error:  # whatever it is: the findings are worth more than the headers
        if is_transient(error) or is_machine_fault(error):
            raise
        log.exception("headers of the images not kept", study_key=job.study_key)
        return b""


def _refused_study(source: Path) -> Study | None:
    # imported here: it loads pydicom, which other studies need in the process that reads them only
    from imaging.dicom.study import refused_study

    return refused_study(source)


def _reject(
    pipeline: Pipeline,
    job: Job,
    budget: Budget,
    rejection: Rejection,
    study: Study | None = None,
    rule: str = "",
) -> StudyResult:
    job = pipeline.admit(job, study)
    with budget.stage("report"):
        study = study or _refused_study(job.source)
        ledger, applied = budget.ledger_so_far, pipeline.rule_named(rule)
        report = compose_rejection(pipeline.provenance, job, study, rejection, ledger, applied)
        evidence = {SOURCE: _headers(study.headers if study else None, job)}
        paths = pipeline.write(report, {}, job.out, evidence)
    return StudyResult(replace(report, ledger=budget.ledger), paths)
