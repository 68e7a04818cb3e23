"""The folders of the agent, and the lock that keeps a second agent out of them."""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from edge.access import close_folder, make_folder, user_name, warn_if_open
from edge.errors import EdgeError
from edge.settings.core import EdgeSettings

DATABASE = "spool.sqlite3"
"""Name of the database in the state folder."""
RECEIVED = ".received.json"
"""Hidden file in the folder of a series that was received: who sent it, and since when."""
DONE = ".done"
"""Suffix of an empty file, or the file itself in a folder: the study of this name is complete."""
TRAIL = "trail"
"""Name of the folder of the audit trail in the state folder."""

log = structlog.get_logger()


class AlreadyRunning(EdgeError):
    """Another agent uses this inbox, outbox or state folder: stop it, or use other folders."""


@dataclass(frozen=True)
class AgentFolders:
    """The folders of one agent, all below the three that are configured.

    By study key, ``work`` has the claimed studies until they are done, ``done`` those whose report
    is in the outbox, and ``quarantine`` the rejected ones, each with its ``reason.json``. ``trail``
    has the files of the audit trail.
    """

    inbox: Path
    outbox: Path
    state: Path
    work: Path
    done: Path
    quarantine: Path
    trail: Path

    @classmethod
    def of(cls, settings: EdgeSettings) -> "AgentFolders":
        """Take the folders from the settings, as absolute paths."""
        state = settings.state_dir.absolute()
        within = (state, state / "work", state / "done", state / "quarantine", state / TRAIL)
        return cls(settings.inbox.absolute(), settings.outbox.absolute(), *within)

    @property
    def viewer(self) -> Path:
        """The folder with voxels of studies that are looked at on the status page."""
        return self.state / "viewer"

    def make(self) -> None:
        """Create the folders that are missing, and close the agent's own to other users.

        The inbox is left as it is: its sender may be another user. A study that may not be moved
        out of it waits.

        Raises:
            OSError: a folder cannot be made, or one of the agent's own may not be written.
        """
        own = (self.state, self.work, self.done, self.quarantine, self.trail)
        for folder in (self.inbox, self.outbox, *own):
            make_folder(folder)
        for folder in own:
            close_folder(folder, group=True)
        close_folder(self.outbox, group=False)
        warn_if_open(self.inbox)
        for folder in (self.outbox, *own):
            _require_writable(folder)


def _require_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, str(folder)) from error
    except OSError:  # a full disk, say, for which the main loop waits
        pass


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel releases it when the process ends.

    A network share may know no locks. Then a warning is logged: no study is lost even so, because
    studies and names of reports are claimed by `rename` and `mkdir`.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with open(path, "w", opener=partial(os.open, mode=0o600)) as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{path.parent}: another agent uses this folder") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            log.warning("folder cannot be locked", folder=str(path.parent), reason=error.strerror)
        yield


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)  # a command that asks whether an agent runs holds it for a moment
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_running(folders: AgentFolders) -> bool:
    """Return whether an agent holds the state folder."""
    try:
        with (folders.state / ".overread.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def other_user(folders: AgentFolders) -> str:
    """Return a note if this is not the agent's user; empty if it is, or the agent never ran."""
    if not folders.state.exists() or (owner := folders.state.stat().st_uid) == os.geteuid():
        return ""
    return (
        f"{folders.state} belongs to {user_name(owner)}: run this as that user; "
        "whether a study is blocked depends on the user"
    )
