"""Files that are whole or not there, and moves that survive a power cut.

A rename is atomic but reaches the disk only when its folder is synchronised; both are done here
and nowhere else.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_SQLITE_NO_ROOM = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_WRITE}
)
"""Of EDQUOT and EROFS sqlite tells no more than that a write failed."""
_SQLITE_HELD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Another has the database: a backup, somebody with the sqlite shell."""
_PRIMARY = 0xFF
"""The part of an extended code that says what it is about; the rest says why."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or refuses; the old file is untouched, nothing else is left.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename within one filesystem; when this returns, the move outlasts a power cut."""
    source.rename(target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file or folder, also to another filesystem: ``target`` is whole or not there.

    A link stays a link, wherever it leads, as it would in a rename.

    Raises:
        OSError: the first that was met, as `passes` knows it; nothing else is left.
    """
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        _copy(source, part)
        move(part, target)
    except OSError:
        with suppress(OSError):
            remove(part)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; that it is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def passes(error: BaseException) -> bool:
    """Whether it passes by itself: disk full or read-only, database held by another. Try again."""
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
        return code in _SQLITE_NO_ROOM or code & _PRIMARY in _SQLITE_HELD
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def sync_folder(folder: Path) -> None:
    """Bring the folder's own entries to the disk."""
    _sync(folder)


def _copy(source: Path, target: Path) -> None:
    """One after the other: `shutil.copytree` goes on after an error, and loses its number."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for entry in source.iterdir():
            _copy(entry, target / entry.name)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
    if not target.is_symlink():
        _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
