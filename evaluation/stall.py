"""How long a thread was kept from running although it could have: the machine was too busy.

Linux counts for each thread the time that it stood in the queue of a processor (`schedstat`, the
second number). It tells a program that is slow from a machine that has no time for it. Only the
calling thread counts: what others waited may have delayed nothing. What a hypervisor takes is not
seen. Where there is no such count, nothing is said to have stalled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

THREADS = Path("/proc/self/task")


@dataclass
class Stall:
    """``took_s``: how long the thread stood in the queue while it lasted."""

    took_s: float = 0.0


def queued_s(threads: Path = THREADS) -> float:
    """The seconds that this thread has stood in the queue since it began; 0 if none counts."""
    try:
        text = (threads / str(threading.get_native_id()) / "schedstat").read_text()
        return int(text.split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


@contextmanager
def stalled(threads: Path = THREADS) -> Iterator[Stall]:
    """Measures the stall of the calling thread while it lasts."""
    began_s, stall = queued_s(threads), Stall()
    yield stall
    stall.took_s = queued_s(threads) - began_s
