"""Carries one claimed study to its end: read and done, or refused and in quarantine.

It may be called again for a study at any step, after a crash, a full disk or a locked database,
and goes on from there. A report that is in the outbox stands: the study is not read again, nothing
changes silently.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from edge.atomic_files import move, passes, sync_folder, write_atomically
from edge.budget import LedgerEntry
from edge.job import Job
from edge.pipeline import StudyResult
from edge.report.model import Rejection, Report, Status
from edge.report.write import write_report
from edge.settings import EdgeSettings
from edge.store.studies import Record, Spool, Step

MAX_ATTEMPTS = 3
"""Readings of one study that may die with the process before the study is blamed."""

UNFINISHED = (Step.CLAIMED, Step.READING, Step.REPORTED, Step.QUARANTINING)

Read = Callable[[Job], StudyResult]
"""Reads one study and leaves its report in the job's folder, ``report.json`` last."""

Waited = Callable[[str], float]
"""Seconds that the budget of the study of that key has run."""

Carry = Callable[[Record], None]
"""Brings one unfinished study to its end, as `carry` does."""

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


def _not_at_all(_key: str) -> float:
    """The study was taken up the moment it came."""
    return 0.0


def carry(
    record: Record,
    places: Places,
    spool: Spool,
    read: Read,
    deadline_s: float,
    tell: Callable[[Report], None],
    waited_s: Waited = _not_at_all,
) -> None:
    """Bring one study from any step in `UNFINISHED` to its end.

    Args:
        record: of the study.
        places: the agent's folders.
        spool: that remembers the study.
        read: reads it.
        deadline_s: for the report of a study that ``read`` gives none of.
        tell: is told of the report once it is out, and never again.
        waited_s: for how long the study's time has run; it goes into the same reports.

    Raises:
        OSError, sqlite3.OperationalError: files or the database cannot be written;
            `edge.atomic_files.passes` tells whether that passes. The study is where it was.
    """
    if record.step in (Step.CLAIMED, Step.READING):
        record = _read(record, places, spool, read, deadline_s, tell, waited_s)
    if record.step is Step.REPORTED:
        _put_away(record, places, spool, places.done / record.id, Step.DONE)
    else:
        folder = places.quarantine / record.id
        folder.mkdir(exist_ok=True)
        sync_folder(places.quarantine)
        write_atomically(folder / "reason.json", _reason(record, places))
        _put_away(record, places, spool, folder / "study", Step.QUARANTINED)


def _read(
    record: Record,
    places: Places,
    spool: Spool,
    read: Read,
    deadline_s: float,
    tell: Callable[[Report], None],
    waited_s: Waited,
) -> Record:
    """The record at REPORTED or QUARANTINING, the report in the outbox."""
    job = Job(places.work / record.id / record.name, places.outbox / record.report_name, record.id)
    record = spool.advance(record.id, Step.READING)
    answered, rejection = _answer_in(job)  # by an attempt that ended right after it
    if answered:
        return _conclude(record, spool, rejection)
    report, details = _report(record, job, read, deadline_s, waited_s)
    tell(report)
    return _conclude(record, spool, report.rejection, details)


def _report(
    record: Record, job: Job, read: Read, deadline_s: float, waited_s: Waited
) -> tuple[Report, str]:
    """The report, which is out, and what is for the makers' eyes alone."""
    wait_s = waited_s(record.id)
    wait = LedgerEntry("wait", deadline_s, wait_s)
    if record.attempts > MAX_ATTEMPTS:
        reason = f"the reading of this study has ended the process {MAX_ATTEMPTS} times"
        return _refused(job, "RepeatedCrash", reason, deadline_s, (wait,)), ""
    try:
        return read(job).report, ""
    except Exception as error:  # whatever the line has, the studies after this one go on
        if passes(error):
            raise
        log.exception("study failed", study_key=record.id)
        left_s, took_s = max(0.0, deadline_s - wait_s), waited_s(record.id) - wait_s
        ledger = (wait, LedgerEntry("failed", left_s, took_s))
        report = _refused(job, "InternalError", repr(error), deadline_s, ledger)
        return report, traceback.format_exc()


def _refused(
    job: Job, kind: str, reason: str, deadline_s: float, ledger: tuple[LedgerEntry, ...]
) -> Report:
    """Write the report of a study that the line gave none of."""
    report = Report(
        study_key=job.study_key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=deadline_s,
        ledger=ledger,
        second_reading_reason="the study was not read",
        status=Status.REJECTED,
        rejection=Rejection(kind, reason, job.source.name, internal=True),
    )
    write_report(report, {}, job.out)
    return report


def _conclude(
    record: Record, spool: Spool, rejection: Rejection | None, details: str = ""
) -> Record:
    if rejection is None:
        return spool.advance(record.id, Step.REPORTED)
    log.warning("study to quarantine", study_key=record.id, kind=rejection.kind)
    reason = f"{rejection.reason}\n{details}".strip()
    return spool.condemn(record.id, rejection.kind, reason, rejection.file)


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


def _answer_in(job: Job) -> tuple[bool, Rejection | None]:
    """Whether a report is out, and what it refuses; a damaged one counts as none."""
    answer = job.out / "report.json"
    if not answer.is_file():
        return False, None
    try:
        rejection = json.loads(answer.read_bytes())["rejection"]
        return True, None if rejection is None else Rejection(**rejection)
    except (ValueError, KeyError, TypeError):
        log.warning("report is damaged, reading again", study_key=job.study_key)
        return False, None
