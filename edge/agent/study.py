"""Process one claimed study to its end: read and done, or rejected and quarantined.

It may be called again for a study at any step, after a crash, a full disk or a locked database,
and continues from there. A report that is in the outbox stands: the study is not read again.
"""

import json
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from edge.access import close_files, make_folder
from edge.agent.claim import hold_report_folder, received
from edge.agent.join import earlier_study, join, put_apart, refer, set_apart
from edge.atomic_files import is_transient, move, remove, sync_folder, write_atomically
from edge.budget import LedgerEntry
from edge.folders import AgentFolders
from edge.job import Job
from edge.pipeline import StudyResult
from edge.report.compose import completed, more_images
from edge.report.evidence import SOURCE, evidence_files
from edge.report.model import ChangeKind, Rejection, Report, Status
from edge.report.serialize import report_in
from edge.report.write import (
    exported_versions,
    give_up_report,
    read_series,
    write_report,
    write_version,
)
from edge.store.record import Record
from edge.store.steps import Step
from edge.store.studies import StudyStore
from imaging.dicom.arrival import arrived, files_of
from imaging.dicom.study import refused_study
from imaging.errors import is_machine_fault
from imaging.volume import StudyHeader
from process import tracing

MAX_ATTEMPTS = 3
"""Attempts that may end with the process before the study is rejected."""

UNFINISHED = (Step.CLAIMED, Step.JOINING, Step.READING, Step.REPORTED, Step.QUARANTINING)

log = structlog.get_logger()


def process_study(
    record: Record,
    since_s: float | None,
    folders: AgentFolders,
    store: StudyStore,
    read: Callable[[Job], StudyResult],
    deadline_s: float,
    on_report: Callable[[Report], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Process one study from any step in `UNFINISHED` to its end.

    A later part of a study that was reported joins it, and that study is processed again. One that
    brings nothing new is put away.
    ``read`` leaves the report in the job's folder, ``report.json`` last. ``on_report`` is called
    once with the report, after it is written. ``since_s`` is the start time of the budget on
    ``clock``, None for now. ``deadline_s`` is that of a study that ``read`` cannot report.

    Raises:
        OSError, sqlite3.OperationalError: files or the database cannot be written. The study stays
            at its step; `edge.atomic_files.is_transient` tells whether trying again helps.
    """
    refusal = None
    if record.step is Step.CLAIMED and record.attempts == 0:
        earlier = earlier_study(record, folders, store)
        if earlier is not None and earlier.refusal is not None:
            refusal = earlier.refusal
            said = {"study_key": record.id, "refused": earlier.study.id, "kind": refusal.kind}
            log.warning("study received again unchanged, its refusal stands", **said)
        elif earlier is not None:
            record = store.begin_join(record.id, earlier.study.id, earlier.new_images)
    if record.step is Step.JOINING:
        joined = join(record, folders, store)
        if joined is None:
            return
        record = joined
    if record.step in (Step.CLAIMED, Step.READING):
        record = store.advance(record.id, Step.READING)
        record = hold_report_folder(record, folders, store)
        source, out = folders.work / record.id / record.name, folders.outbox / record.report_name
        parts, notes = store.parts.later_parts(record.id), store.parts.notes(record.id)
        job = Job(source, out, record.id, since_s, parts, notes)
        # a next version is written beside the study: the report that is out stays until then
        draft = job if job.version == 1 else replace(job, out=source.parent / ".report")
        # an earlier attempt may have ended right after its report
        found, rejection = _report_in(job)
        details, began_s = "", time.time()
        if not found:
            report, details = _read(record, draft, read, deadline_s, clock, refusal)
            if draft != job and (why := _why_worse(report, source, out)):
                set_apart(record, why, folders, store)
                found = True
        if found:
            if not store.pending.has(record.id):
                give_up_report(out, record.id)  # only if it is provisional
            for note in store.parts.notes(record.id):
                refer(record.id, out, note, ChangeKind.NOT_JOINED, store)
        else:
            if draft != job:
                pictures = {p.name: p.read_bytes() for p in sorted(draft.out.glob("*.jpg"))}
                write_version(report, pictures, out, evidence_files(draft.out))
            on_report(report)
            rejection = report.rejection
        remove(source.parent / ".report")
        facts = report_in(out)
        record_trace(record, source, facts, began_s)
        versions = exported_versions(out, record.id) if store.extensions else ()
        if rejection is None:
            record = store.advance(record.id, Step.REPORTED, facts, versions)
        else:
            log.warning("study quarantined", study_key=record.id, kind=rejection.kind)
            reason = f"{rejection.reason}\n{details}".strip()
            kind, file = rejection.kind, rejection.file
            record = store.quarantine(record.id, kind, reason, file, facts, versions)
    if record.step is Step.REPORTED:
        put_apart(record, folders, store)
        _put_away(record, folders, store, folders.done / record.id, Step.DONE)
    else:
        folder = folders.quarantine / record.id
        make_folder(folder)
        sync_folder(folders.quarantine)
        write_atomically(folder / "reason.json", _reason(record, folders))
        _put_away(record, folders, store, folder / "study", Step.QUARANTINED)


def _read(
    record: Record,
    job: Job,
    read: Callable[[Job], StudyResult],
    deadline_s: float,
    clock: Callable[[], float],
    refusal: Rejection | None,
) -> tuple[Report, str]:
    """Return the report, which is out, and details for the developers.

    A study that ``read`` cannot report gets a report that says so, as does one that is not read
    because its ``refusal`` stands.
    """
    began_s, details = clock(), ""
    wait_s = 0.0 if job.since_s is None else max(0.0, began_s - job.since_s)
    ledger = [LedgerEntry("wait", deadline_s, wait_s)]
    if refusal is not None:
        reason = f"it was sent again unchanged, and was refused before: {refusal.reason}"
        rejection = replace(refusal, reason=reason)
    elif record.attempts > MAX_ATTEMPTS:
        reason = f"reading this study has ended the process {MAX_ATTEMPTS} times"
        rejection = Rejection("RepeatedCrash", reason, job.source.name, internal=True)
    else:
        try:
            return read(job).report, ""
        except Exception as error:  # whatever it is, the next studies must be read
            if is_transient(error) or is_machine_fault(error) or isinstance(error, sqlite3.Error):
                raise
            log.exception("study failed", study_key=record.id)
            left_s = max(0.0, deadline_s - wait_s)
            ledger.append(LedgerEntry("failed", left_s, clock() - began_s))
            details = traceback.format_exc()
            rejection = Rejection("InternalError", repr(error), job.source.name, internal=True)
    study = refused_study(job.source)
    report = Report(
        study_key=job.study_key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=job.source,
        deadline_s=deadline_s,
        version=job.version,
        changes=more_images(job),
        header=study.header if study else StudyHeader(),
        other_series=job.notes,
        ledger=tuple(ledger),
        second_reading_reason="the study was not read",
        status=Status.REJECTED,
        rejection=rejection,
    )
    report = completed(report)
    # where the refusal stands, the targets have been told
    headers = study.headers() if study and study.headers and refusal is None else b""
    write_report(report, {}, job.out, {SOURCE: headers})
    return report, details


def _why_worse(report: Report, source: Path, out: Path) -> Rejection | None:
    """Return why the report of a study with later parts must not replace the one that is out.

    That was read, and the study cannot be read with them; or not the series that was read, and they
    bring no better one. None where it may replace it.
    """
    before = read_series(out, report.study_key)
    came = {image.series_uid for part in source.glob("part-*") for image in arrived(part)}
    if before is None or (report.was_read and report.series_uid in came | {before}):
        return None
    reason = report.second_reading_reason
    if report.was_read:
        reason = f"the series {before} cannot be read with them: {'; '.join(report.other_series)}"
    return report.rejection or Rejection("SeriesNotFound", reason)


def record_trace(record: Record, source: Path, report: Mapping[str, Any], began_s: float) -> None:
    """Record the root of a study whose first report is out, and how it arrived and waited.

    It is recorded from what is durable by then: the row of the study, and what a receiver has left
    in its folder. So a restart loses nothing of it.

    Args:
        record: the study.
        source: its folder, with what a receiver says of it.
        report: facts of its report; nothing of the patient or the findings is taken.
        began_s: wall-clock time at which its reading began.
    """
    root = tracing.root_of(record.id)
    if root is None or report.get("version", 1) != 1:
        return
    claimed_s = datetime.fromisoformat(record.created).timestamp()
    arrival = received(source)
    first_s = _seconds(arrival.get("first"))
    if first_s is not None:
        files = files_of(source)
        last_s = max((file.stat().st_mtime for file in files), default=first_s)
        way = str(arrival.get("way", ""))
        tracing.record("receive", root, first_s, last_s, way=way, images=len(files))
        tracing.record("inbox", root, last_s, claimed_s)
    tracing.record("wait", root, claimed_s, began_s)
    words = {name: report.get(name) for name in ("status", "second_reading", "kind")}
    known = {name: str(word) for name, word in words.items() if word}
    tracing.record_study(record.id, first_s or claimed_s, time.time(), **known)


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def _put_away(
    record: Record, folders: AgentFolders, store: StudyStore, target: Path, step: Step
) -> None:
    source = folders.work / record.id
    if source.exists():
        close_files(
            source
        )  # not before it was read: rights change the time of a file's last change
        move(source, target)
    store.advance(record.id, step)


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


def _report_in(job: Job) -> tuple[bool, Rejection | None]:
    """Return whether this version of a report is out, and its rejection.

    An invalid report counts as none.
    """
    report = job.out / "report.json"
    if not report.is_file():
        return False, None
    try:
        values = json.loads(report.read_bytes())
        if values.get("version", 1) < job.version:
            return False, None
        rejection = values["rejection"]
        return True, None if rejection is None else Rejection(**rejection)
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("invalid report, reading again", study_key=job.study_key)
        return False, None
