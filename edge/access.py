"""Who may read what the edge writes: its own user, and the group of a setgid outbox.

Reports, studies and the database are data of patients. Folders have mode 0700, files 0600, whatever
the umask. Programs that fetch reports read them as a group: in a setgid folder (``chgrp radiology
outbox; chmod 2750 outbox``) new folders have mode 2750, new files 0640.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import structlog

UMASK = 0o077
"""Of the programs, for files that others write for them."""

MAX_DEPTH = 64
"""Levels of folders in a study. Beyond, it is not taken: many a function calls itself per level."""

log = structlog.get_logger()


def make_folder(folder: Path, *, exist_ok: bool = True, parents: bool = True) -> None:
    """Make the folder, and with ``parents`` those above it that are missing.

    Raises:
        OSError: it cannot be made; FileExistsError if it exists and is no folder, or may not exist.
    """
    if parents and not folder.parent.exists():
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


def obstacle(study: Path) -> str:
    """Return why this process may not move and read a study in the inbox; empty if it may.

    A folder that is moved must itself be writable, because its entry ``..`` changes. The text names
    owner and mode, and no path.
    """
    inbox, user = study.parent.stat(), os.geteuid()
    if inbox.st_mode & stat.S_ISVTX and user not in (0, inbox.st_uid, study.lstat().st_uid):
        return "the sticky bit of the inbox, with which only the owner may move a study: chmod -t"
    if not os.access(study.parent, os.W_OK | os.X_OK, effective_ids=True):
        return f"the inbox, which user {user_name(user)} may not write: {whose(study.parent)}"
    inside = (Path(entry.path) for entry in walk(study)) if study.is_dir() else iter(())
    for path in chain([study], inside):
        with suppress(FileNotFoundError):
            status = path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            needed = os.R_OK | os.W_OK | os.X_OK if is_folder else os.R_OK
            is_link = stat.S_ISLNK(status.st_mode)
            if not is_link and not os.access(path, needed, effective_ids=True):
                what, verb = ("folder", "move") if is_folder else ("file", "read")
                mode = stat.S_IMODE(status.st_mode)
                return (
                    f"a {what} of user {user_name(status.st_uid)}, group "
                    f"{group_name(status.st_gid)}, mode {mode:04o}, which user {user_name(user)} "
                    f"may not {verb}: it needs a group that both users have, and chmod -R ug+rwX; "
                    "the sender needs a umask of 0007"
                )
    return ""


def walk(top: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that lies in a folder, each folder before what it holds; links are not followed.

    What vanishes meanwhile is left out.

    Raises:
        OSError: a folder cannot be listed, or folders are nested more than `MAX_DEPTH` deep.
    """
    waiting = [(str(top), 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise OSError(errno.ELOOP, f"folders are nested more than {MAX_DEPTH} deep")
        with suppress(FileNotFoundError), os.scandir(folder) as found:
            for entry in found:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))


def whose(path: Path) -> str:
    """Return whose a file is that this process may not open, or the folder that would hold it."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    status = path.lstat()
    return (
        f"{path} belongs to user {user_name(status.st_uid)}, with mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and this is user {user_name(os.geteuid())}"
    )


def user_name(number: int) -> str:
    """Return the name of a user, or the number where there is no name."""
    return _name_of(pwd.getpwuid, number)


def group_name(number: int) -> str:
    """Return the name of a group, or the number where there is no name."""
    return _name_of(grp.getgrgid, number)


def _name_of(entry: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(entry(number)[0])
    except KeyError:
        return str(number)


def _is_shared(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IRGRP)
