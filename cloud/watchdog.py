"""The watchdog of the model: it notices a batch that hangs, and batches that fail in a row.

An instance of the model that cannot read must not stay: it gets no more batches, and the others go
on. Without any that reads, the service must end: its supervisor can start it again, and callers can
use another.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import structlog

from protos.errors import ModelFailed

HUNG, MIN_HUNG_S = 10.0, 5.0
"""The model hangs if a batch takes this many times its bound, and at least this many seconds."""

FAILURES_IN_A_ROW = 3
"""After this many failed batches in a row an instance counts as broken."""

_log = structlog.get_logger(__name__)


class Watchdog:
    """Watches the instances of the model, each with the loop that feeds it.

    A broken instance is dropped: its loop is cancelled, and ``dropped`` is called with its number.
    ``broken`` fails with `ModelFailed` once the last one cannot read any more, or with what a loop
    raised besides.
    """

    def __init__(
        self, loops: Sequence[asyncio.Task[None]], dropped: Callable[[int], object]
    ) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loops, self._dropped = dict(enumerate(loops)), dropped
        self._failures = Counter[int]()
        for i, loop in self._loops.items():
            loop.add_done_callback(partial(self._ended, i))

    @contextmanager
    def batch(self, i: int, rois: int, bound_s: float) -> Iterator[None]:
        """Watch a batch of instance ``i`` while the current task reads it.

        It should seldom take longer than ``bound_s``. If it hangs, the instance is dropped, and
        `ModelFailed` is raised.
        """
        most_s, task = max(MIN_HUNG_S, HUNG * bound_s), asyncio.current_task()
        hangs = f"the model hangs: a batch of {rois} ROIs takes more than {most_s:.1f} s"

        def hung() -> None:
            self._break(i, hangs)
            # the last instance's batch is not failed: its callers learn that the service ends
            if i not in self._loops and task is not None:
                task.cancel(hangs)

        timer = asyncio.get_running_loop().call_later(most_s, hung)
        try:
            yield
        except asyncio.CancelledError as error:
            if task is not None and error.args == (hangs,):
                task.uncancel()
                raise ModelFailed(hangs) from None
            raise
        finally:
            timer.cancel()

    def succeeded(self, i: int) -> None:
        """Note that instance ``i`` has read a batch."""
        self._failures[i] = 0

    def failed(self, i: int, reason: str) -> None:
        """Note that instance ``i`` could not read a batch."""
        self._failures[i] += 1
        if self._failures[i] >= FAILURES_IN_A_ROW:
            self._break(i, f"{self._failures[i]} batches in a row failed: {reason}")

    def _break(self, i: int, reason: str) -> None:
        """Drop instance ``i`` if it is not dropped yet; the last one breaks the service instead."""
        if len(self._loops) > 1 and i in self._loops:
            left = len(self._loops) - 1
            _log.error("an instance of the model is dropped", instance=i, reason=reason, left=left)
            self._loops.pop(i).cancel()
            self._dropped(i)
        elif i in self._loops and not self.broken.done():
            self.broken.set_exception(ModelFailed(reason))

    def _ended(self, i: int, loop: asyncio.Task[None]) -> None:
        """Drop the instance of a loop that failed; a fault of the program ends the service."""
        error = None if loop.cancelled() else loop.exception()
        if isinstance(error, ModelFailed):
            self._break(i, error.reason)
        elif error is not None and not self.broken.done():
            self.broken.set_exception(error)
