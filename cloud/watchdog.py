"""The watchdog of the model: it notices a batch that hangs, and batches that fail in a row.

A service whose model cannot read must not stay: its supervisor can start it again, and callers can
use another.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from protos.errors import ModelFailed

HUNG, LEAST_HUNG_S = 10.0, 5.0
"""The model hangs if a batch takes this many times its bound, and at least this many seconds."""

FAILURES_IN_A_ROW = 3
"""After this many failed batches in a row the model counts as broken."""


class Watchdog:
    """Watches batches; ``broken`` fails with `ModelFailed` once the model cannot read any more."""

    def __init__(self) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failures = 0

    @contextmanager
    def batch(self, rois: int, bound_s: float) -> Iterator[None]:
        """Watch a batch, which should seldom take longer than ``bound_s``, while it is read."""
        most_s = max(LEAST_HUNG_S, HUNG * bound_s)
        hangs = f"the model hangs: a batch of {rois} ROIs takes more than {most_s:.1f} s"
        timer = asyncio.get_running_loop().call_later(most_s, self._break, hangs)
        try:
            yield
        finally:
            timer.cancel()

    def succeeded(self) -> None:
        """Note that a batch was read."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """Note that a batch could not be read."""
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            self._break(f"{self._failures} batches in a row failed: {reason}")

    def _break(self, reason: str) -> None:
        if not self.broken.done():
            self.broken.set_exception(ModelFailed(reason))
