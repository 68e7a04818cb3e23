"""Ends the daemon in two signals: the first finishes the study at hand, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def draining(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets ``stop``; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def drain(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        # not here: the main thread may hold the event's lock, and this is the main thread
        threading.Thread(target=stop.set, daemon=True).start()

    before = {number: signal.signal(number, drain) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
