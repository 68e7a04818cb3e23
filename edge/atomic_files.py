"""Atomic file operations that survive a power cut, and the errors that pass by themselves.

A rename is atomic, but it reaches the disk only when its folder is synchronised. Both are done
here and nowhere else.
"""

import errno
import hashlib
import os
import shutil
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path

from edge.access import file_mode
from process.files import named


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a reader sees the old file or the new one, never a part of it.

    Raises:
        OSError: writing failed; it names the file. The old one is unchanged, and nothing else is
            left.
    """
    write_whole(path, data)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write as `write_atomically`; a power cut may undo it until the folder is synchronised."""
    part = path.with_name(f".{path.name}.part")
    try:
        with named(path), open(part, "wb", opener=partial(os.open, mode=0o600)) as file:
            os.fchmod(file.fileno(), file_mode(path.parent))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Rename within one filesystem; the move survives a power cut once this returns."""
    source.rename(target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file or folder, also to another filesystem: ``target`` is complete or missing.

    A link stays a link, as in a rename.

    Raises:
        OSError: the first error, with its number; nothing is left.
    """
    # a name may be as long as the filesystem allows: it has no room for more letters
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    part = target.with_name(f".{name}.part")
    remove(part)
    try:
        _copy(source, part)
        move(part, target)
    except OSError:
        with suppress(OSError):
            remove(part)
        raise


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; a missing one is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: disk full or read-only, or database locked."""
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
        # for EDQUOT and EROFS, sqlite reports only that a write failed
        full = [sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_WRITE]
        # another process, for example a backup or the sqlite shell; 0xFF: the primary result code
        return code in full or code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def sync_folder(folder: Path) -> None:
    """Synchronise the entries of a folder to the disk; for a file, its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    """Copy file by file: `shutil.copytree` continues after an error, and loses its number."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for entry in source.iterdir():
            _copy(entry, target / entry.name)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
    if not target.is_symlink():
        sync_folder(target)
