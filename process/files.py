"""What every program needs of files: errors that name them, and whether one was changed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what differs between two files, and after any change of one.

    Everyone may set the other times, and an inode is used again: only the time of the last change
    of content, name or rights (ctime) is the system's own.
    """
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name into an `OSError` of writing it: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
