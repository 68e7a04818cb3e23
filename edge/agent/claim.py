"""Claim a complete study: move it out of the inbox exactly once, even if the process dies.

The row goes first (step CLAIMING), then the files, then the row again (CLAIMED). A rename moves the
files. If the inbox is on another filesystem, they are first renamed to a hidden name in the inbox,
so that nobody else touches them, and then copied.
"""

import errno
import os
from collections.abc import Callable
from itertools import filterfalse
from pathlib import Path

import structlog

from edge.agent.inbox import DONE, CompleteStudy, report_names
from edge.atomic_files import copy_whole, move, remove, sync_folder
from edge.store.studies import Record, Step, StudyStore

log = structlog.get_logger()


def claim(
    study: CompleteStudy,
    inbox: Path,
    work: Path,
    store: StudyStore,
    is_taken: Callable[[str], bool],
    on_claim: Callable[[str, float], None],
) -> Record | None:
    """Move the study to ``work / record.id``; return None if another process took it.

    ``is_taken`` says whether a name in the outbox is in use. ``on_claim`` is called with the
    study key and the start time of its budget, before a file is moved.
    """
    names = filterfalse(is_taken, report_names(study.name))
    record = store.open_claim(study.members, study.fingerprint, names)
    if record is None:
        return None
    on_claim(record.id, study.since_s)
    return _take(record, inbox, work, store)


def resume_claim(record: Record, inbox: Path, work: Path, store: StudyStore) -> None:
    """Finish an interrupted claim, or delete it if it had not moved a file yet.

    In that case the study is still in the inbox, and more of it may have arrived.
    """
    moved = (work / record.id / record.name, _staged(inbox, record, record.name))
    if any(path.exists() for path in moved):
        _take(record, inbox, work, store)
    else:
        _forget(record, work, store)


def _take(record: Record, inbox: Path, work: Path, store: StudyStore) -> Record | None:
    folder = work / record.id
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(work)
    for member in record.members:
        _bring(inbox / member, _staged(inbox, record, member), folder / member)
        if not (folder / record.name).exists():
            log.warning("study vanished before it was claimed", study_key=record.id)
            _forget(record, work, store)
            return None
    for marker in (folder / record.name / DONE, folder / f"{record.name}{DONE}"):
        if marker.is_file():
            remove(marker)
    return store.advance(record.id, Step.CLAIMED)


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
            move(source, staged)
    if not exists(target):
        copy_whole(staged, target)
    remove(staged)


def _staged(inbox: Path, record: Record, member: str) -> Path:
    return inbox / f".claimed-{record.id}-{record.members.index(member)}"


def _forget(record: Record, work: Path, store: StudyStore) -> None:
    folder = work / record.id
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    store.forget_claim(record.id)
