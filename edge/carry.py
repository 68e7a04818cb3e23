"""Carries one claimed study to its end: read and done, or refused and in quarantine.

It may be called again for a study at any step, after a crash or a full disk, and goes on from
there. A report that is in the outbox stands: the study is not read again, nothing changes
silently.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from edge.durable import move, no_room, write_atomically
from edge.outcome import Job, Rejection, Report, Status
from edge.pipeline import Reading
from edge.report import write_report
from edge.settings import EdgeSettings
from edge.spool import Record, Spool, Step

MAX_ATTEMPTS = 3
"""Readings of one study that may die with the process before the study is blamed."""

UNFINISHED = (Step.CLAIMED, Step.READING, Step.REPORTED, Step.QUARANTINING)

Read = Callable[[Job], Reading]
"""Reads one study and leaves its report in the job's folder, ``report.json`` last."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Places:
    """The folders of one agent, all below the three that are configured."""

    inbox: Path
    outbox: Path
    state: Path

    @classmethod
    def of(cls, settings: EdgeSettings) -> Places:
        """The places that the settings name, absolute."""
        return cls(*(p.absolute() for p in (settings.inbox, settings.outbox, settings.state_dir)))

    @property
    def work(self) -> Path:
        """Claimed studies, by id, until they are done."""
        return self.state / "work"

    @property
    def done(self) -> Path:
        """Studies whose report is in the outbox, by id."""
        return self.state / "done"

    @property
    def quarantine(self) -> Path:
        """Refused studies, by id, each with its ``reason.json``."""
        return self.state / "quarantine"

    def make(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.inbox, self.outbox, self.work, self.done, self.quarantine):
            folder.mkdir(parents=True, exist_ok=True)


def carry(record: Record, places: Places, spool: Spool, read: Read, deadline_s: float) -> None:
    """Bring one study from any step in `UNFINISHED` to its end.

    Raises:
        OSError: files cannot be written or moved; `edge.durable.no_room` tells whether that
            passes. The study is where it was.
    """
    if record.step in (Step.CLAIMED, Step.READING):
        record = _read(record, places, spool, read, deadline_s)
    if record.step is Step.REPORTED:
        _put_away(record, places, spool, places.done / record.id, Step.DONE)
    else:
        folder = places.quarantine / record.id
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "reason.json", _reason(record, places))
        _put_away(record, places, spool, folder / "study", Step.QUARANTINED)


def _read(record: Record, places: Places, spool: Spool, read: Read, deadline_s: float) -> Record:
    """The record at REPORTED or QUARANTINING, the report in the outbox."""
    job = Job(places.work / record.id / record.name, places.outbox / record.report_name, record.id)
    answer = job.out / "report.json"
    answered = answer.is_file()  # by an attempt that ended right after it
    record = spool.advance(record.id, Step.READING)
    if answered:
        return _conclude(record, spool, _rejection_in(answer))
    if record.attempts > MAX_ATTEMPTS:
        reason = f"the reading of this study has ended the process {MAX_ATTEMPTS} times"
        rejection = Rejection("RepeatedCrash", reason, job.source.name, internal=True)
        return _refuse(record, spool, job, rejection, deadline_s)
    try:
        reading = read(job)
    except Exception as error:
        if no_room(error):
            raise
        log.exception("study failed", study_key=record.id)
        rejection = Rejection("InternalError", repr(error), job.source.name, internal=True)
        return _refuse(record, spool, job, rejection, deadline_s, traceback.format_exc())
    return _conclude(record, spool, reading.report.rejection)


def _conclude(record: Record, spool: Spool, rejection: Rejection | None) -> Record:
    if rejection is None:
        return spool.advance(record.id, Step.REPORTED)
    log.warning("study to quarantine", study_key=record.id, kind=rejection.kind)
    return spool.condemn(record.id, rejection.kind, rejection.reason, rejection.file)


def _refuse(
    record: Record,
    spool: Spool,
    job: Job,
    rejection: Rejection,
    deadline_s: float,
    details: str = "",
) -> Record:
    """A study that the line gave no report of: write one that says so, and quarantine it."""
    report = Report(
        study_key=record.id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=deadline_s,
        second_reading_reason="the study was not read",
        status=Status.REJECTED,
        rejection=rejection,
    )
    write_report(report, {}, job.out)
    reason = f"{rejection.reason}\n{details}".strip()
    return _conclude(record, spool, Rejection(rejection.kind, reason, rejection.file, True))


def _put_away(record: Record, places: Places, spool: Spool, target: Path, step: Step) -> None:
    source = places.work / record.id
    if source.exists():
        move(source, target)
    spool.advance(record.id, step)


def _reason(record: Record, places: Places) -> bytes:
    words = {
        "kind": record.kind,
        "file": record.file,
        "reason": record.reason,
        "study": record.name,
        "study_key": record.id,
        "report": str(places.outbox / record.report_name / "report.html"),
        "attempts": record.attempts,
        "claimed": record.created,
        "refused": record.updated,
    }
    return f"{json.dumps(words, indent=2, ensure_ascii=True)}\n".encode()


def _rejection_in(report: Path) -> Rejection | None:
    rejection = json.loads(report.read_bytes())["rejection"]
    return None if rejection is None else Rejection(**rejection)
