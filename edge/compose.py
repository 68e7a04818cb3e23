"""Composes the report of a study: of one that was read, and of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edge.audit import Audit
from edge.decide import Plan
from edge.exchange import Escalated
from edge.finding import SecondReading
from edge.guarantee import UNREAD, Guaranteed, promised
from edge.merge import Merged
from edge.outcome import Job, LedgerEntry, Rejection, Report, Status
from imaging.volume import Study


@dataclass(frozen=True)
class Judgement:
    """What the line came to think of one lung box, and on what grounds.

    ``audit`` is set where there was nothing to ask about.
    """

    plan: Plan
    answers: Escalated
    merged: Merged
    audit: Audit | None = None


@dataclass(frozen=True)
class Stamp:
    """What every report says of the line that made it.

    ``edge_model`` is model, version and engine in one line, ``guaranteed`` the most that a report
    may promise; ``now`` gives the wall-clock time.
    """

    edge_model: str
    guaranteed: Guaranteed
    deadline_s: float
    now: Callable[[], datetime]


def compose(
    stamp: Stamp,
    job: Job,
    study: Study,
    judgement: Judgement,
    ledger: tuple[LedgerEntry, ...],
) -> Report:
    """The report of a study that was read."""
    plan, answers, merged = judgement.plan, judgement.answers, judgement.merged
    slice_mm = study.volume.geometry.spacing_mm[0]
    return Report(
        study_key=job.study_key,
        created=stamp.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=stamp.deadline_s,
        header=study.header,
        series_uid=study.volume.series_uid,
        findings=merged.findings,
        decisions=plan.decisions,
        ledger=ledger,
        second_reading=merged.second_reading,
        second_reading_reason=merged.reason,
        models=models_used(stamp.edge_model, answers),
        other_series=study.other_series,
        guaranteed=promised(stamp.guaranteed, plan, answers, slice_mm),
        audit=judgement.audit,
        status=_status(judgement),
    )


def compose_rejection(
    stamp: Stamp, job: Job, rejection: Rejection, ledger: tuple[LedgerEntry, ...]
) -> Report:
    """The report of a study that was not read."""
    return Report(
        study_key=job.study_key,
        created=stamp.now().isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=stamp.deadline_s,
        ledger=ledger,
        second_reading_reason="the study was not read",
        models={"edge": stamp.edge_model},
        guaranteed=UNREAD,
        status=Status.REJECTED,
        rejection=rejection,
    )


def models_used(edge_model: str, answers: Escalated) -> dict[str, str]:
    """Role to model: the edge's own, and the cloud's if it gave verdicts."""
    cloud = sorted({verdict.model for verdict in answers.verdicts.values()})
    return {"edge": edge_model} | ({"cloud": ", ".join(cloud)} if cloud else {})


def _status(judgement: Judgement) -> Status:
    """Provisional while a second reading that was wanted of a cloud is not all there."""
    unread = judgement.merged.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING)
    wanted = unread and not judgement.answers.switched_off
    return Status.PROVISIONAL if wanted else Status.FINAL
