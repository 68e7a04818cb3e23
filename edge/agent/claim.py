"""Claim a complete study: move it out of the inbox exactly once, even if the process dies.

The row goes first (step CLAIMING), then the folder of the report in the outbox is made, then the
files are moved, then the row again (CLAIMED). A rename moves the files. If the inbox is on another
filesystem, they are first moved to a hidden folder in the inbox, so that nobody else touches them,
and then copied.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from edge.access import make_folder, user_name, walk
from edge.agent.inbox import InboxEntry
from edge.atomic_files import copy_whole, move, remove, sync_folder
from edge.folders import DONE, RECEIVED, AgentFolders
from edge.report.folder import release_folder, report_names, take_folder
from edge.store.record import Record, Step
from edge.store.studies import Change, StudyStore
from imaging.dicom.arrival import Arrived, files_of, look

RECEIVED_KEYS = ("way", "calling_ae", "called_ae", "caller", "peer", "first")
"""What `RECEIVED` says; a folder that a program copied has no such file."""

_SAMPLE = 16
"""Files of a study whose headers tell its identifiers: 2 ms each."""

log = structlog.get_logger()


def claim(
    study: InboxEntry,
    folders: AgentFolders,
    store: StudyStore,
    on_claim: Callable[[str, float], None],
) -> Record | None:
    """Move the study to ``work / record.id``; return None if another process took it.

    ``on_claim`` is called with the study key and the start time of its budget, before a file is
    moved.
    """
    names = free_report_names(study.name, folders.outbox)
    record = store.open_claim(study.members, names)
    if record is None:
        return None
    on_claim(record.id, study.since_s)
    return _take(record, folders, store)


def resume_claim(record: Record, folders: AgentFolders, store: StudyStore) -> None:
    """Finish an interrupted claim, or delete it if it had not moved a file yet.

    In that case the study is still in the inbox, and more of it may have arrived.
    """
    staged = _staged(folders.inbox, record, record.name)
    if any(path.exists() for path in (folders.work / record.id / record.name, staged)):
        _take(record, folders, store)
    else:
        _forget(record, folders, store)


def hold_report_folder(record: Record, folders: AgentFolders, store: StudyStore) -> Record:
    """Make the folder of the study's report, under another name if another study has this one.

    Raises:
        OSError: the outbox cannot be written.
    """
    while not take_folder(folders.outbox / record.report_name, record.id):
        log.warning("name of the report is taken, using another", study_key=record.id)
        names = free_report_names(record.name, folders.outbox)
        record = store.rename_report(record.id, names)
    return record


def free_report_names(name: str, outbox: Path) -> Iterator[str]:
    """Propose names for the report of the study ``name`` that are not in the outbox."""
    return (proposed for proposed in report_names(name) if not (outbox / proposed).exists())


def _take(record: Record, folders: AgentFolders, store: StudyStore) -> Record | None:
    record = hold_report_folder(record, folders, store)
    folder = folders.work / record.id
    make_folder(folder)
    sync_folder(folders.work)
    for member in record.members:
        _bring(folders.inbox / member, _staged(folders.inbox, record, member), folder / member)
        if not (folder / record.name).exists():
            log.warning("study vanished before it was claimed", study_key=record.id)
            _forget(record, folders, store)
            return None
    for marker in (folder / record.name / DONE, folder / f"{record.name}{DONE}"):
        if marker.is_file():
            remove(marker)
    change = Change(facts=arrival_of(folder / record.name))
    return store.advance(record.id, Step.CLAIMED, change)


def _bring(source: Path, staged: Path, target: Path) -> None:
    """Move one member; it can be called again after a crash at any point."""
    exists = os.path.lexists  # a dangling link is a member too
    if not exists(target) and not exists(staged):
        try:
            move(source, target)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            make_folder(staged.parent)
            move(source, staged)
    if not exists(target):
        if problem := _missing_room(staged, target.parent):
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {problem}", str(target.parent)
            )
        copy_whole(staged, target)
    remove(staged)
    with suppress(OSError):  # it was renamed, or more of the study lies there
        staged.parent.rmdir()


def missing_room(record: Record, folders: AgentFolders) -> str:
    """Return what keeps a study that is being claimed from being copied; empty if nothing does.

    Raises:
        OSError: the study cannot be looked at, or has been copied meanwhile.
    """
    folder = folders.work / record.id
    waiting = (
        staged
        for member in record.members
        if os.path.lexists(staged := _staged(folders.inbox, record, member))
        and not os.path.lexists(folder / member)
    )
    return next(filter(None, (_missing_room(staged, folders.work) for staged in waiting)), "")


def _missing_room(source: Path, folder: Path) -> str:
    """Find out before a copy whether it would fill the disk, which others need meanwhile."""
    inside = (entry.stat(follow_symlinks=False) for entry in walk(source))
    files = inside if source.is_dir() and not source.is_symlink() else [source.lstat()]
    needed = sum(status.st_size for status in files)
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return ""
    return f"waits for room: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"


def _staged(inbox: Path, record: Record, member: str) -> Path:
    return inbox / staging_folder(record.id) / member


def staging_folder(study_key: str) -> str:
    """Return the hidden folder in the inbox from which a claimed study is copied."""
    return f".claimed-{study_key}"


def _forget(record: Record, folders: AgentFolders, store: StudyStore) -> None:
    folder = folders.work / record.id
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    release_folder(folders.outbox / record.report_name, record.id)
    store.forget_claim(record.id)


def arrival_of(study: Path) -> dict[str, Any]:
    """Return who sent a study, and its identifiers where it is DICOM.

    Of a patient only the identifiers that an audit message needs are taken: the patient's and the
    study's. No name, no date, no description.

    ``owner`` is the user of this machine to whom the folder or file belongs. The keys of
    `RECEIVED` are there if a network service received it.
    """
    files = files_of(study) or [study]
    image = next(sampled(files), None)
    facts: dict[str, Any] = {
        "name": study.name,
        "files": len(files),
        "owner": user_name(study.lstat().st_uid),
        **received(study),
    }
    if image is not None:
        facts |= {
            "patient_id": image.patient_id,
            "study_uid": image.study_uid,
            "series_uid": image.series_uid,
        }
    return facts


def sampled(files: Sequence[Path]) -> Iterator[Arrived]:
    """Yield the headers of some of the files, of those that are DICOM images."""
    return filter(None, map(look, files[:: max(1, len(files) // _SAMPLE)]))


def received(study: Path) -> dict[str, Any]:
    """Return how a study was received, as its first series says; empty for one that was not."""
    found = [_received(file) for file in sorted(study.glob(f"*/{RECEIVED}"))]
    return min(filter(None, found), key=lambda one: str(one.get("first")), default={})


def _received(file: Path) -> dict[str, Any]:
    """Return the known keys of the file that a receiver leaves; values of other types are not."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            values = json.loads(stream.read(1 << 16))
        known = {key: values[key] for key in RECEIVED_KEYS if key in values}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, (str, int))}
