"""One study from the door to its report, whatever it is: an ended study is reported too."""

from __future__ import annotations

from dataclasses import replace

import structlog

from edge.budget import Budget
from edge.compose import compose_rejection
from edge.durable import passes
from edge.outcome import Job, Rejection
from edge.pipeline import Line, Reading, walk
from imaging.errors import StudyError

log = structlog.get_logger()


def read_and_report(line: Line, job: Job) -> Reading:
    """The reading of one study; one that cannot be read gives a report that says why.

    Raises:
        OSError: the report cannot be written, or there is no room left on the disk.
        sqlite3.OperationalError: what it owes cannot be kept now, which passes.
    """
    budget = line.ingest()
    if job.since_s is not None:
        budget.waited(job.since_s)
    try:
        reading = walk(line, job, budget)
    except StudyError as error:
        rejection = Rejection(error.kind, error.reason, str(error.file))
        reading = _reject(line, job, budget, rejection)
    except Exception as error:  # a fault of ours costs neither the report nor the next studies
        if passes(error):
            raise  # the study is sound: whoever called waits, and reads it again
        log.exception("study failed", study_key=job.study_key)
        kind, reason = type(error).__name__, f"internal fault: {error}"
        reading = _reject(line, job, budget, Rejection(kind, reason, internal=True))
    _tell(reading)
    return reading


def _reject(line: Line, job: Job, budget: Budget, rejection: Rejection) -> Reading:
    with budget.stage("report"):
        report = compose_rejection(line.stamp, job, rejection, budget.ledger_so_far)
        paths = line.write(report, {}, job.out)
    return Reading(replace(report, ledger=budget.ledger), paths)


def _tell(reading: Reading) -> None:
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
