"""Capture what C libraries print on stderr: for some damaged input it is the only sign."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from imaging.files import anonymous_file

_STDERR = 2
_ONE_AT_A_TIME = threading.Lock()


class ReportedDamage(Exception):
    """A library reported damaged input and yet returned an image."""


@contextmanager
def captured() -> Iterator[None]:
    """Keep the process's stderr from printing inside the block.

    The captured text is printed after the block, as another thread may have written it. When the
    block fails the text is dropped: the exception says what is wrong.

    Raises:
        ReportedDamage: the block succeeded, but a library reported damage.
    """
    with _ONE_AT_A_TIME, os.fdopen(anonymous_file(), "w+b") as sink:
        with _redirected(sink):
            yield
        sink.seek(0)
        text = sink.read().decode(errors="replace")
    for line in text.splitlines():
        # libjpeg, which fills the rest with grey, and MetaIO, which leaves it as it is in memory
        if line.startswith(("Corrupt JPEG data", "Uncompress failed")):
            raise ReportedDamage(line)
    if text and sys.stderr:
        sys.stderr.write(text)


@contextmanager
def _redirected(sink: BinaryIO) -> Iterator[None]:
    """Redirect the file descriptor itself: C code does not use ``sys.stderr``."""
    if sys.stderr:
        sys.stderr.flush()
    try:
        saved = os.dup(_STDERR)
    except OSError:  # a daemon without stderr: nothing to redirect
        yield
        return
    os.dup2(sink.fileno(), _STDERR)
    try:
        yield
    finally:
        if sys.stderr:
            sys.stderr.flush()
        os.dup2(saved, _STDERR)
        os.close(saved)
