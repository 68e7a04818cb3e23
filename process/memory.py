"""Bounds on the memory that a long-running process keeps for later."""

import ctypes
from contextlib import suppress

M_ARENA_MAX, ARENAS = -8, 2
"""Parameter of mallopt, and its value."""


def share_free_memory() -> None:
    """Have all threads share what is free.

    Without this, glibc keeps free memory for each thread that once needed it: an arena, up to
    eight for a core.
    """
    with suppress(OSError, AttributeError):  # only glibc has arenas
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
