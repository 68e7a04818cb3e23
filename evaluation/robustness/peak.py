"""The memory of a process and its children, sampled while they work."""

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
def peak_memory(process: int, *, together: bool = False) -> Iterator[PeakMemory]:
    """Sample the memory of a process and of all that it starts, for the time of the context.

    Only with ``together`` the sum is measured: the kernel takes milliseconds to count shared pages.
    """
    peak, done = PeakMemory(), threading.Event()

    def sample() -> None:
        while not done.wait(_PAUSE_S):
            peak.own_mb = max(peak.own_mb, _kilobytes(process, "status", "VmHWM:") / 1024)
            children = list(_descendants(process))
            for child in children:
                found = _kilobytes(child, "status", "VmHWM:") / 1024
                peak.child_mb = max(peak.child_mb, found)
            if together:
                found = sum(_kilobytes(p, "smaps_rollup", "Pss:") for p in (process, *children))
                peak.together_mb = max(peak.together_mb, found / 1024)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _descendants(process: int) -> Iterator[int]:
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)


def _kilobytes(process: int, file: str, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0
