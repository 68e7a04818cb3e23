"""Takes a complete study out of the inbox, once, whatever happens in between.

The row goes first (step CLAIMING), then the files, then the row again (CLAIMED). A rename moves
the files. Where the inbox lies on another filesystem they are first renamed to a hidden name in
the inbox, which takes them out of everybody's reach, and then copied.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import filterfalse
from pathlib import Path

import structlog

from edge.atomic_files import copy_whole, move, remove, sync_folder
from edge.daemon.inbox import DONE, Arrival, report_names
from edge.store.studies import Record, Spool, Step

log = structlog.get_logger()


def claim(
    arrival: Arrival,
    inbox: Path,
    work: Path,
    spool: Spool,
    taken: Callable[[str], bool],
    begun: Callable[[str, float], None],
) -> Record | None:
    """The record of the study, its files in ``work / record.id``; None if another took it.

    Args:
        arrival: the complete study.
        inbox: where it lies.
        work: where it goes.
        spool: that remembers it.
        taken: whether a name in the outbox must not be used.
        begun: is told the study's key, and since when its budget runs, before a file is moved.
    """
    names = filterfalse(taken, report_names(arrival.name))
    record = spool.open_claim(arrival.members, arrival.fingerprint, names)
    if record is None:
        return None
    begun(record.id, arrival.since_s)
    return _take(record, inbox, work, spool)


def resume_claim(record: Record, inbox: Path, work: Path, spool: Spool) -> None:
    """Finish a claim that was interrupted, or forget it if it had not moved a file yet.

    A forgotten one is seen again in the inbox; more of it may have arrived in the meantime.
    """
    begun = (work / record.id / record.name, _staged(inbox, record, record.name))
    if any(path.exists() for path in begun):
        _take(record, inbox, work, spool)
    else:
        _forget(record, work, spool)


def _take(record: Record, inbox: Path, work: Path, spool: Spool) -> Record | None:
    folder = work / record.id
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(work)
    for member in record.members:
        _bring(inbox / member, _staged(inbox, record, member), folder / member)
        if not (folder / record.name).exists():
            log.warning("gone before it could be claimed", study_key=record.id)
            _forget(record, work, spool)
            return None
    for marker in (folder / record.name / DONE, folder / f"{record.name}{DONE}"):
        if marker.is_file():
            remove(marker)
    return spool.advance(record.id, Step.CLAIMED)


def _bring(source: Path, staged: Path, target: Path) -> None:
    """Move one member; may be called again after a crash at any point of it."""
    there = os.path.lexists  # a link that dangles is a member all the same
    if not there(target) and not there(staged):
        try:
            move(source, target)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            move(source, staged)
    if not there(target):
        copy_whole(staged, target)
    remove(staged)


def _staged(inbox: Path, record: Record, member: str) -> Path:
    return inbox / f".claimed-{record.id}-{record.members.index(member)}"


def _forget(record: Record, work: Path, spool: Spool) -> None:
    folder = work / record.id
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    spool.forget(record.id)
