"""What the C libraries below print on stderr, caught: of some damage it is the only sign."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_STDERR = 2
_DAMAGE = "Corrupt JPEG data"  # libjpeg, which goes on and fills the rest with grey
_ONE_AT_A_TIME = threading.Lock()


class Complaint(Exception):
    """A library found its input damaged and yet returned a picture."""


@contextmanager
def caught() -> Iterator[None]:
    """Keeps the process's stderr from printing inside the block.

    What was printed appears after it, for another thread may have written it. When the block
    fails it is dropped: the exception says what there is to say.

    Raises:
        Complaint: the block succeeded, but a library complained of damage.
    """
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        with _redirected(sink):
            yield
        sink.seek(0)
        text = sink.read().decode(errors="replace")
    for line in text.splitlines():
        if line.startswith(_DAMAGE):
            raise Complaint(line)
    if text and sys.stderr:
        sys.stderr.write(text)


@contextmanager
def _redirected(sink: BinaryIO) -> Iterator[None]:
    """The descriptor itself, for C knows nothing of ``sys.stderr``."""
    if sys.stderr:
        sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:  # a daemon without stderr has nothing to keep quiet
        yield
        return
    os.dup2(sink.fileno(), _STDERR)
    try:
        yield
    finally:
        if sys.stderr:
            sys.stderr.flush()
        os.dup2(kept, _STDERR)
        os.close(kept)
