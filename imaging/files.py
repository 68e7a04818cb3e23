"""Open files that anyone may have written, and files in memory.

Only regular files are opened, and none through a link: a link may lead to a file of somebody else,
a named pipe blocks its reader for ever, and opening a device may do anything.
"""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from imaging.errors import StudyError, UnreadableFile, is_machine_fault
from process.files import state_of

SIDECARS = ("clinical.json",)
"""Files that the caller reads: they lie beside the images, and are none of them."""

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Of files that hold a volume."""

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: Path) -> str:
    """Return what ``path`` is if it is no regular file, such as "a link"; empty if it is one.

    Raises:
        OSError: there is nothing, or it may not be seen.
    """
    return _KINDS.get(stat.S_IFMT(path.lstat().st_mode), "")


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        UnreadableFile: it is a link, a pipe, a socket or a device, or may not be opened.
        OSError: a fault of the machine.
    """
    try:
        if not (kind := special_kind(path)):
            # should it be exchanged in this moment, it is neither followed nor waited for
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            stream = os.fdopen(handle, "rb")
            if not (kind := _KINDS.get(stat.S_IFMT(os.fstat(handle).st_mode), "")):
                return stream
            stream.close()
    except OSError as error:
        if is_machine_fault(error):
            raise
        reason = f"cannot be opened ({error.strerror}): check its permissions"
        raise UnreadableFile(reason, path) from None
    raise UnreadableFile(not_plain(kind), path)


@contextmanager
def unchanged(files: Iterable[Path]) -> Iterator[None]:
    """Require that each file is at the end what it was at the beginning, also after a `StudyError`.

    Raises:
        OSError: one was changed, replaced or removed: what was read may be of two studies.
    """
    before = {file: _state(file) for file in files}
    error = None
    try:
        yield
    except StudyError as found:
        error = found
    if changed := next((file for file in before if _state(file) != before[file]), None):
        reason = "was changed while the study was read: read it again"
        raise OSError(errno.ESTALE, reason, str(changed)) from error
    if error is not None:
        raise error


def _state(file: Path) -> tuple[int, ...]:
    try:
        return state_of(file.lstat())
    except FileNotFoundError:
        return ()


def not_plain(kind: str) -> str:
    """Say why something that is not a regular file is refused."""
    advice = "give the file itself" if kind == "a link" else "remove it"
    return f"is {kind}, not a file: {advice}"


def anonymous_file() -> int:
    """Open a file without a name, in memory where the system can; returns its descriptor.

    On Linux it cannot be made shorter, so that a map of it stays valid. Unlike ``/dev/shm``, which
    is small in containers, it is limited by the memory alone.
    """
    if not hasattr(os, "memfd_create"):
        handle, name = tempfile.mkstemp()
        os.unlink(name)
        return handle
    handle = os.memfd_create("overread", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return handle


@contextmanager
def named_in_memory(content: bytes) -> Iterator[str]:
    """Give a name under which a library can read ``content``.

    On Linux nothing is written to a disk, and nothing is left if the process is killed.
    """
    if not Path("/proc/self/fd").is_dir():
        with tempfile.NamedTemporaryFile() as stream:
            stream.write(content)
            stream.flush()
            yield stream.name
        return
    with os.fdopen(anonymous_file(), "wb") as stream:
        stream.write(content)
        stream.flush()
        yield f"/proc/self/fd/{stream.fileno()}"
