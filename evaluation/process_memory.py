"""The memory and the CPU time of processes, from /proc: now, and at most while they work."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 0.03


@dataclass
class PeakMemory:
    """The most memory that was seen, in MB: of the process, of one child, and of all together.

    The first two are resident memory (VmHWM of the kernel). The sum counts shared pages once (PSS).
    """

    own_mb: float = 0.0
    child_mb: float = 0.0
    together_mb: float = 0.0


@contextmanager
def peak_memory(pid: int, *, together: bool = False) -> Iterator[PeakMemory]:
    """Sample the memory of a process and of all that it starts, for the time of the context.

    Only with ``together`` the sum is measured: the kernel takes milliseconds to count shared pages.
    """
    peak, done = PeakMemory(), threading.Event()

    def sample() -> None:
        while not done.wait(_PAUSE_S):
            children = children_of(pid)
            peak.own_mb = max(peak.own_mb, _mb(pid, "status", "VmHWM:"))
            peak.child_mb = max([peak.child_mb, *(_mb(p, "status", "VmHWM:") for p in children)])
            if together:
                peak.together_mb = max(peak.together_mb, together_mb(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def together_mb(pid: int) -> float:
    """Return the memory of a process and of all that it started in MB, shared pages once (PSS)."""
    return sum(_mb(one, "smaps_rollup", "Pss:") for one in (pid, *children_of(pid)))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 if it has ended."""
    return _mb(pid, "status", "VmRSS:")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of all that it started, in seconds."""
    found = 0
    for process in (pid, *children_of(pid)):
        with suppress(OSError):
            # user and system time: its own, and of children that have ended
            found += sum(
                map(
                    int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
                )
            )
    return found / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Return all processes below a process."""
    found = list[int]()
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return [*found, *(one for child in found for one in children_of(child))]


def _mb(pid: int, file: str, name: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
