"""Who may read what the edge writes: its own user, and the group of a setgid outbox.

Reports, studies and the database are data of patients. Folders have mode 0700, files 0600, whatever
the umask. Programs that fetch reports read them as a group: in a setgid folder (``chgrp radiology
outbox; chmod 2750 outbox``) new folders have mode 2750, new files 0640.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

UMASK = 0o077
"""Of the programs, for files that others write for them."""

log = structlog.get_logger()


def make_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make the folder, and those above it that are missing.

    Raises:
        OSError: it cannot be made; FileExistsError if it exists and is no folder, or may not exist.
    """
    if not folder.parent.exists():
        make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not exist_ok or not folder.is_dir():
            raise
        return
    if _is_shared(folder.parent):
        folder.chmod(0o2750)


def file_mode(folder: Path) -> int:
    """Return the mode of a new file in this folder."""
    return 0o640 if _is_shared(folder) else 0o600


def close_folder(folder: Path, *, group: bool) -> None:
    """Take the folder from all other users, and with ``group`` from its group too.

    A folder of another user stays as it is; a warning says so.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if closed := mode & (0o077 if group else 0o007):
        try:
            folder.chmod(mode & ~closed)
        except PermissionError:
            warn_if_open(folder, closed)
        else:
            log.info("folder closed to other users", folder=str(folder), mode_was=f"{mode:04o}")


def warn_if_open(folder: Path, bits: int = 0o007) -> None:
    """Log a warning if any of these permissions is given, by default those of every user."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & bits:
        log.warning("folder is open to other users", folder=str(folder), mode=f"{mode:04o}")


def close_files(top: Path) -> None:
    """Take a file, or a folder and all in it, from its group and all other users.

    Links are not followed. What belongs to another user stays as it is: the folders above must
    protect it.
    """
    inside = (Path(at) / name for at, folders, files in os.walk(top) for name in folders + files)
    for path in (top, *inside):
        with suppress(FileNotFoundError, PermissionError):
            mode = path.lstat().st_mode
            if mode & 0o077 and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & 0o700)


def _is_shared(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IRGRP)
