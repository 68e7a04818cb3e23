"""Process one claimed study to its end: read and done, or rejected and quarantined.

It may be called again for a study at any step, after a crash, a full disk or a locked database,
and continues from there. A report that is in the outbox stands: the study is not read again.
"""

import json
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from edge.access import close_files, make_folder
from edge.agent.claim import hold_report_folder
from edge.agent.join import columns_of, earlier_study, join, put_apart, refer, set_apart
from edge.agent.trace import record_trace
from edge.atomic_files import is_transient, move, remove, sync_folder, write_atomically
from edge.budget import LedgerEntry
from edge.folders import AgentFolders
from edge.guarantee import UNREAD
from edge.job import Job
from edge.pipeline import StudyResult
from edge.report.compose import Provenance, compose_rejection
from edge.report.evidence import SOURCE, evidence_files
from edge.report.model import ChangeKind, Rejection, Report
from edge.report.serialize import NotAReport, read_report, report_in
from edge.report.write import (
    exported_versions,
    give_up_report,
    read_series,
    write_report,
    write_version,
)
from edge.store.later_parts import LaterPart
from edge.store.record import Record, Step
from edge.store.studies import NOT_REFUSED, Change, StudyStore
from imaging.dicom.arrival import arrived
from imaging.dicom.study import refused_study
from imaging.errors import is_machine_fault

MAX_ATTEMPTS = 3
"""Attempts that may end with the process before the study is rejected."""

DRAFT = ".report"
"""Folder beside a study in which the next version of its report is written."""

log = structlog.get_logger()


@dataclass
class Work:
    """What the steps of one study need, and what this process knows of it beside its row.

    Attributes:
        read: leaves the report in the job's folder, ``report.json`` last.
        deadline_s: that of a study that ``read`` cannot report.
        on_report: is called once with the report, after it is written.
        since_s: start time of the budget on ``clock``, None for now.
        began_s: wall-clock time at which its reading began.
        report: what was written; None where the report that is out stands.
        details: on a fault of the program, for its developers.
    """

    folders: AgentFolders
    store: StudyStore
    read: Callable[[Job], StudyResult]
    deadline_s: float
    on_report: Callable[[Report], None]
    clock: Callable[[], float] = time.monotonic
    since_s: float | None = None
    began_s: float = 0.0
    report: Report | None = None
    details: str = ""


def process_study(record: Record, work: Work) -> None:
    """Process one study from any step of the table `HANDLERS` to its end.

    Raises:
        OSError, sqlite3.OperationalError: files or the database cannot be written. The study stays
            at its step; `edge.atomic_files.is_transient` tells whether trying again helps.
    """
    if record.step is Step.READING:  # an earlier attempt was interrupted, this is one more
        record = work.store.advance(record.id, Step.READING)
    while handlers := HANDLERS.get(record.step):
        for handle in handlers:
            record = handle(record, work)


def _begin(record: Record, work: Work) -> Record:
    """Let a study join the earlier one to which it belongs, or begin to read it.

    The row of one that was sent again unchanged has the refusal of the earlier one, which stands.
    """
    if record.attempts:
        return work.store.advance(record.id, Step.READING)
    earlier = earlier_study(record, work.folders, work.store)
    if isinstance(earlier, LaterPart):
        return work.store.advance(record.id, Step.JOINING, Change(part=earlier))
    refused = columns_of(earlier) if earlier else NOT_REFUSED
    return work.store.advance(record.id, Step.READING, Change(refused))


def _join(record: Record, work: Work) -> Record:
    """Move a later part to its study, and begin to read that again; put a repetition away."""
    part = join(record, work.folders, work.store)
    record = work.store.advance(record.id, Step.DONE, Change(part=part))
    return work.store.advance(part.study_key, Step.READING) if part.version else record


def _read(record: Record, work: Work) -> Record:
    """Have the report of a study written, unless an earlier attempt has ended right after it."""
    work.began_s = time.time()
    record = hold_report_folder(record, work.folders, work.store)
    parts, notes = work.store.parts.later_parts(record.id), work.store.parts.notes(record.id)
    more_images = tuple((part.version, part.images) for part in parts.values())
    source, out = work.folders.work / record.id / record.name, _out(record, work)
    job = Job(source, out, record.id, work.since_s, more_images, notes)
    if _standing(out, record.id, job.version):
        return record
    # a next version is written beside the study: the report that is out stays until then
    draft = job if job.version == 1 else replace(job, out=source.parent / DRAFT)
    report = _report(record, draft, work)
    if draft != job:
        if why := _why_worse(report, job):
            set_apart(record, why, work.folders, work.store)
            return record
        pictures = {p.name: p.read_bytes() for p in sorted(draft.out.glob("*.jpg"))}
        write_version(report, pictures, out, evidence_files(draft.out))
    work.report = report
    work.on_report(report)
    return record


def _note(record: Record, work: Work) -> Record:
    """Note that the report is out, and begin its export."""
    store, out, report = work.store, _out(record, work), work.report
    if report is None:
        if not store.pending.has(record.id):
            give_up_report(out, record.id)  # only if it is provisional
        for note in store.parts.notes(record.id):
            refer(record.id, out, note, ChangeKind.NOT_JOINED, store)
        report = _standing(out, record.id)
    source = work.folders.work / record.id / record.name
    remove(source.parent / DRAFT)
    facts = report_in(out)
    record_trace(record, source, facts, work.began_s)
    versions = exported_versions(out, record.id) if store.extensions else ()
    if report is None or report.rejection is None:
        return store.advance(record.id, Step.REPORTED, Change(NOT_REFUSED, facts, versions))
    refusal = report.rejection
    log.warning("study quarantined", study_key=record.id, kind=refusal.kind)
    why = columns_of(replace(refusal, reason=f"{refusal.reason}\n{work.details}".strip()))
    change = Change(why, {**facts, "kind": refusal.kind}, versions)
    return store.advance(record.id, Step.QUARANTINING, change)


def _put_away(record: Record, work: Work) -> Record:
    put_apart(record, work.folders, work.store)
    _move_to(work.folders.done / record.id, record, work)
    return work.store.advance(record.id, Step.DONE)


def _refuse(record: Record, work: Work) -> Record:
    folder = work.folders.quarantine / record.id
    make_folder(folder)
    sync_folder(work.folders.quarantine)
    write_atomically(folder / "reason.json", _reason(record, work.folders))
    _move_to(folder / "study", record, work)
    return work.store.advance(record.id, Step.QUARANTINED)


HANDLERS: Mapping[Step, Sequence[Callable[[Record, Work], Record]]] = {
    Step.CLAIMED: (_begin,),  # -> READING, or JOINING
    Step.JOINING: (_join,),  # -> READING of the study that it joined, or DONE
    Step.READING: (_read, _note),  # -> REPORTED, or QUARANTINING
    Step.REPORTED: (_put_away,),  # -> DONE
    Step.QUARANTINING: (_refuse,),  # -> QUARANTINED
}
"""What is done with a study at each step; the last handler returns the record of the next step."""

UNFINISHED = tuple(HANDLERS)


def _out(record: Record, work: Work) -> Path:
    return work.folders.outbox / record.report_name


def _report(record: Record, job: Job, work: Work) -> Report:
    """Return the report, which is in its folder.

    A study that cannot be read gets a report that says so, as does one that is not read because an
    earlier refusal stands.
    """
    began_s, deadline_s = work.clock(), work.deadline_s
    wait_s = 0.0 if job.since_s is None else max(0.0, began_s - job.since_s)
    ledger = [LedgerEntry("wait", deadline_s, wait_s)]
    if record.kind:
        reason = f"it was sent again unchanged, and was refused before: {record.reason}"
        rejection = Rejection(record.kind, reason, record.file)
    elif record.attempts > MAX_ATTEMPTS:
        reason = f"reading this study has ended the process {MAX_ATTEMPTS} times"
        rejection = Rejection("RepeatedCrash", reason, job.source.name, internal=True)
    else:
        try:
            return work.read(job).report
        except Exception as error:  # whatever it is, the next studies must be read
            if is_transient(error) or is_machine_fault(error) or isinstance(error, sqlite3.Error):
                raise
            log.exception("study failed", study_key=record.id)
            left_s = max(0.0, deadline_s - wait_s)
            ledger.append(LedgerEntry("failed", left_s, work.clock() - began_s))
            work.details = traceback.format_exc()
            rejection = Rejection("InternalError", repr(error), job.source.name, internal=True)
    study = refused_study(job.source)
    provenance = Provenance("", UNREAD, deadline_s, lambda: datetime.now(UTC))
    report = compose_rejection(provenance, job, study, rejection, tuple(ledger))
    report = replace(report, models={})  # none has read it
    # where the refusal stands, the targets have been told
    headers = study.headers() if study and study.headers and not record.kind else b""
    write_report(report, {}, job.out, {SOURCE: headers})
    return report


def _why_worse(report: Report, job: Job) -> Rejection | None:
    """Return why the report of a study with later parts must not replace the one that is out.

    That was read, and the study cannot be read with them; or not the series that was read, and they
    bring no better one. None where it may replace it.
    """
    before = read_series(job.out, report.study_key)
    came = {image.series_uid for part in job.source.glob("part-*") for image in arrived(part)}
    if before is None or (report.was_read and report.series_uid in came | {before}):
        return None
    reason = report.second_reading_reason
    if report.was_read:
        reason = f"the series {before} cannot be read with them: {'; '.join(report.other_series)}"
    return report.rejection or Rejection("SeriesNotFound", reason)


def _move_to(target: Path, record: Record, work: Work) -> None:
    source = work.folders.work / record.id
    if source.exists():
        # not before it was read: rights change the time of a file's last change
        close_files(source)
        move(source, target)


def _reason(record: Record, folders: AgentFolders) -> bytes:
    values = {
        "kind": record.kind,
        "file": record.file,
        "reason": record.reason,
        "study": record.name,
        "study_key": record.id,
        "report": str(folders.outbox / record.report_name / "report.html"),
        "attempts": record.attempts,
        "claimed": record.created,
        "refused": record.updated,
    }
    return f"{json.dumps(values, indent=2, ensure_ascii=True)}\n".encode()


def _standing(out: Path, study_key: str, version: int = 1) -> Report | None:
    """Return the report that is out, in this version or a later one; an invalid one is none."""
    try:
        report = read_report(out / "report.json")
    except FileNotFoundError:
        return None
    except NotAReport:
        log.warning("invalid report, reading again", study_key=study_key)
        return None
    return report if report.version >= version else None
