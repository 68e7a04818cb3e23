"""The line that one study walks. Read this first.

    start_budget -> read -> preprocess -> screen -> decide -> escalate -> merge -> draw -> report

There is no branch in it: every stage returns a value for each legitimate outcome, a lost link
among them, and only an exception ends a study (`edge.pipeline` reports that too).

One study from the door to its report, whatever it is: an ended study is reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from edge.atomic_files import passes
from edge.audit import audit_of, is_sampled
from edge.budget import Budget
from edge.decide import Plan, Situation
from edge.escalation.client import SecondReader
from edge.findings import Finding
from edge.job import Job
from edge.merge import merge
from edge.report.model import Assessment, Provenance, Rejection, Report, compose, compose_rejection
from edge.report.pictures import Pictures
from edge.report.write import ReportPaths
from edge.screen import EdgeReader
from edge.selection import SELECTION_POLICY, SelectionPolicy
from edge.store.pending import PersistPending
from imaging.errors import StudyError
from imaging.preprocess import Preprocessed
from imaging.volume import Study, Volume


@dataclass(frozen=True)
class Pipeline:
    """The stages, opened once and used for study after study.

    Attributes:
        start_budget: from here the deadline runs, or since when the study has waited.
        read: a folder or file to a study; raises `imaging.errors.StudyError`.
        preprocess: a volume to the lung box; raises `imaging.errors.NoLung`.
        reader: the edge's own reader.
        decide: what is sent of a study, told by its key.
        second_reader: the cloud, or who stands in for it.
        draw: leaves the pictures of the findings in a folder.
        persist_pending: stores what is still pending, so that the report can be amended later.
        write: leaves the report beside them.
        provenance: what the report says of the line itself.
        reserve_s: seconds kept back for the stages after the escalation.
        roi_bytes: size of one region on the wire.
        max_rois: regions of one study that are escalated at most.
        audit_rate: share of the scans without anything to ask about that are audited.
        policy: how the time that is left is spent.
    """

    start_budget: Callable[[], Budget]
    read: Callable[[Path], Study]
    preprocess: Callable[[Volume, Path], Preprocessed]
    reader: EdgeReader
    decide: Callable[[Situation, str], Plan]
    second_reader: SecondReader
    draw: Callable[[Sequence[Finding], Preprocessed, Path], Pictures]
    persist_pending: PersistPending
    write: Callable[[Report, Pictures, Path], ReportPaths]
    provenance: Provenance
    reserve_s: float
    roi_bytes: int
    max_rois: int
    audit_rate: float
    policy: SelectionPolicy = SELECTION_POLICY


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The report of one study and where it was written.

    Its ledger is complete. That of the files ends where their writing began.
    """

    report: Report
    paths: ReportPaths


def run(pipeline: Pipeline, job: Job, budget: Budget) -> StudyResult:
    """One study from its files to its report."""
    with budget.stage("read"):
        study = pipeline.read(job.source)
    with budget.stage("preprocess"):
        box = pipeline.preprocess(study.volume, job.source)
    assessment = detect(pipeline, box, budget, job.study_key)
    with budget.stage("draw"):
        pictures = pipeline.draw(assessment.merged.findings, box, job.out)
    with budget.stage("report"):
        report = compose(pipeline.provenance, job, study, assessment, budget.ledger_so_far)
        pipeline.persist_pending(report, assessment, pipeline.reader, box)
        paths = pipeline.write(report, pictures, job.out)
    return StudyResult(replace(report, ledger=budget.ledger), paths)


def detect(pipeline: Pipeline, box: Preprocessed, budget: Budget, study_key: str) -> Assessment:
    """The middle of the pipeline: from a lung box to findings."""
    reader, second = pipeline.reader, pipeline.second_reader
    with budget.stage("screen"):
        candidates = reader.screen(box)
    with budget.stage("decide"):
        link = second.estimate()
        left_s = budget.left_s(pipeline.reserve_s)
        sampled = is_sampled(study_key, pipeline.audit_rate)
        situation = Situation(
            candidates, reader.thresholds, link, left_s, pipeline.roi_bytes, pipeline.max_rois,
            policy=pipeline.policy, audited=sampled,
        )  # fmt: skip
        plan = pipeline.decide(situation, study_key)
    with budget.stage("escalate", pipeline.reserve_s):
        answers = second.read(plan, box, budget, study_key)
    with budget.stage("merge"):
        merged = merge(plan, answers, reader.thresholds, reader.weights, box.geometry)
        rate, thresholds = pipeline.audit_rate, reader.thresholds
        audit = audit_of(plan, answers, thresholds, rate=rate, sampled=sampled)
    return Assessment(plan, answers, merged, audit)


log = structlog.get_logger()


def read_and_report(pipeline: Pipeline, job: Job) -> StudyResult:
    """The reading of one study; one that cannot be read gives a report that says why.

    Raises:
        OSError: the report cannot be written, or there is no room left on the disk.
        sqlite3.OperationalError: what it owes cannot be kept now, which passes.
    """
    budget = pipeline.start_budget()
    if job.since_s is not None:
        budget.backdate(job.since_s)
    try:
        reading = run(pipeline, job, budget)
    except StudyError as error:
        rejection = Rejection(error.kind, error.reason, str(error.file))
        reading = _reject(pipeline, job, budget, rejection)
    except Exception as error:  # a fault of ours costs neither the report nor the next studies
        if passes(error):
            raise  # the study is sound: whoever called waits, and reads it again
        log.exception("study failed", study_key=job.study_key)
        kind, reason = type(error).__name__, f"internal fault: {error}"
        reading = _reject(pipeline, job, budget, Rejection(kind, reason, internal=True))
    _tell(reading)
    return reading


def _reject(pipeline: Pipeline, job: Job, budget: Budget, rejection: Rejection) -> StudyResult:
    with budget.stage("report"):
        report = compose_rejection(pipeline.provenance, job, rejection, budget.ledger_so_far)
        paths = pipeline.write(report, {}, job.out)
    return StudyResult(replace(report, ledger=budget.ledger), paths)


def _tell(reading: StudyResult) -> None:
    report = reading.report
    log.info(
        "study reported",
        study_key=report.study_key,
        status=report.status.value,
        findings=len(report.findings),
        candidates=len(report.decisions),
        highest_dismissed_score=round(report.highest_dismissed_score, 4),
        second_reading=report.second_reading.value,
        second_reading_reason=report.second_reading_reason,
        took_s=round(report.took_s, 3),
        rejection=report.rejection.kind if report.rejection else None,
    )
