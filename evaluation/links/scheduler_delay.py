"""How long the machine delayed the measured thread.

The *scheduler delay* is the time for which a thread could have run but waited for a processor.
Linux counts it for each thread (`schedstat`, the second number). It tells a slow program from a
busy machine. Only the calling thread counts, and what a hypervisor takes is not seen. Where the
system has no such count the delay is 0.
"""

import threading
from pathlib import Path


def scheduler_delay_s(threads: Path = Path("/proc/self/task")) -> float:
    """Return the scheduler delay of this thread since it began; 0 where none is counted."""
    try:
        text = (threads / str(threading.get_native_id()) / "schedstat").read_text()
        return int(text.split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
