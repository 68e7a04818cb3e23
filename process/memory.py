"""The memory of a long-running process: a bound on what it keeps for later, and its peak."""

import ctypes
from contextlib import suppress
from pathlib import Path

M_ARENA_MAX, ARENAS = -8, 2
"""Parameter of mallopt, and its value."""


def share_free_memory() -> None:
    """Have all threads share what is free.

    Without this, glibc keeps free memory for each thread that once needed it: an arena, up to
    eight for a core.
    """
    with suppress(OSError, AttributeError):  # only glibc has arenas
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def peak_bytes(*, begin: bool = False) -> float:
    """Return the most resident memory of this process in bytes, or 0 where Linux does not say.

    It is that since the last call with ``begin``, which begins again.
    """
    try:
        status = Path("/proc/self/status").read_text()
        if begin:
            with suppress(OSError):  # a strict host: then it is that since the start
                Path("/proc/self/clear_refs").write_text("5")
        return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 0.0
