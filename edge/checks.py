"""What ``overread-edge doctor`` says: the results of checks, and checks that several parts need."""

import errno
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from edge.database import full_disk
from process.http import host_and_port, unbindable
from process.tls import TlsFiles


class Level(Enum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Checked:
    """The result of one check: what was checked, how it is, and what to do."""

    level: Level
    what: str
    text: str


Results = Iterator[Checked]

ok, note, wrong = (partial(Checked, level) for level in Level)
"""The result of a check that ended so, of what was checked and the text."""


def secrets(what: str, *files: Path | None) -> Results:
    """Check that no other user can read these files."""
    for file in files:
        if file is not None and mode(file) & 0o007:
            yield wrong(what, f"{file} can be read by others: chmod go-rwx, or start the agent")


def port(what: str, setting: str, address: str, tls: TlsFiles, *, runs: bool) -> Results:
    """Check the files of TLS, and that the agent can bind a port, or has bound it while it runs."""
    problems = tls.problems()
    for problem in problems:
        yield wrong(what, problem)
    for warning in [] if problems else tls.warnings():
        yield note(what, warning)
    host, number = host_and_port(address)
    reason = unbindable(host, number)
    if reason and not runs:
        yield wrong(what, f"{setting} = {address}: {reason}")
    elif runs and not reason and number:
        yield wrong(what, f"the agent that runs does not listen at {address}: restart it")
    else:
        yield ok(what, f"{address} {'is served' if runs else 'is free'}")


def mode(path: Path) -> int:
    """Return the permissions of a file, 0 if it is missing."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def folder_problem(folder: Path) -> str:
    """Return why nothing can be written to the folder; empty if it can.

    The file that is written to find out has no name, so that nobody takes it for a study.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        is_full = error.errno == errno.ENOSPC
        return full_disk(folder) if is_full else f"{folder}: {error.strerror}"
    return ""
