"""A reader in several parts, each at work on another batch.

A batch moves on when the next part is free, and only then makes room for the one behind it: no
batch waits between two parts while one with an earlier deadline waits before the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from cloud.stages import Timed, Unwanted, always, check
from imaging.volume import UInt8Array
from protos.deadline import Clock
from protos.errors import ModelFailed

Step = Callable[[Any], Any]
"""One part at work: the first takes ROIs uint8 ``(n, z, y, x)``, the last gives `Readings`."""


@runtime_checkable
class PartedReader(Protocol):
    """A model in parts, as `models.runtime.staged` opens it."""

    @property
    def name(self) -> str:
        """Name of its artifact."""

    @property
    def steps(self) -> Sequence[Step]:
        """What is done in turn, each with what the one before it left."""


class PipelineStage:
    """The steps of a reader, each in a worker thread of its own."""

    def __init__(self, reader: PartedReader, *, clock: Clock = time.monotonic) -> None:
        self._name, self._steps, self._clock = reader.name, tuple(reader.steps), clock
        self._places = [asyncio.Lock() for _ in self._steps]
        self._workers = [
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"part{i}")
            for i in range(len(self._steps))
        ]

    async def enter(self) -> None:
        """See `cloud.stages.Stage.enter`."""
        await self._places[0].acquire()

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> Timed:
        """See `cloud.stages.Stage.run`; the time is that of all steps, without waits between."""
        work: Any = batch
        held, compute_s = self._places[0], 0.0
        try:
            for i, place in enumerate(self._places):
                if i > 0:
                    await place.acquire()
                    held.release()
                    held = place
                if not wanted():
                    raise Unwanted(compute_s)
                work, took_s = await self._in_worker(i, work)
                compute_s += took_s
            check(work, len(batch))
        except Exception as error:  # whatever the engine throws, the service lives on
            raise ModelFailed(f"{self._name}: {type(error).__name__}: {error}") from error
        finally:
            held.release()
        return Timed(work, compute_s)

    def close(self) -> None:
        """Ends the worker threads when what they are at is done."""
        for worker in self._workers:
            worker.shutdown(wait=True, cancel_futures=True)

    async def _in_worker(self, i: int, work: Any) -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers[i], self._timed, i, work)

    def _timed(self, i: int, work: Any) -> tuple[Any, float]:
        began_s = self._clock()
        return self._steps[i](work), self._clock() - began_s
