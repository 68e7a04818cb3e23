"""The model as a stage of the line: a batch of ROIs in, readings out, the loop never blocked.

A reader in several parts, each at work on another batch.

A batch moves on when the next part is free, and only then makes room for the one behind it: no
batch waits between two parts while one with an earlier deadline waits before the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos.deadline import Clock
from protos.errors import ModelFailed


class Reader(Protocol):
    """A model that reads ROIs, as `models.runtime.second_reader` opens it."""

    @property
    def name(self) -> str:
        """Name of its artifact."""

    @property
    def version(self) -> str:
        """Version of its artifact."""

    @property
    def engine(self) -> str:
        """The inference engine that was chosen for it."""

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """Shape ``(z, y, x)`` of the ROIs that it reads."""

    def read(self, batch: UInt8Array) -> Readings:
        """What it says of ROIs uint8 ``(n, z, y, x)``."""


@dataclass(frozen=True, eq=False)
class Timed:
    """What a stage says of a batch, and the time that it took."""

    readings: Readings
    compute_s: float


class Unwanted(asyncio.CancelledError):
    """Nobody waits for the batch any more: what was left to do of it is not done.

    ``compute_s`` was spent on it.
    """

    def __init__(self, compute_s: float = 0.0) -> None:
        super().__init__("nobody waits for this batch any more")
        self.compute_s = compute_s


def always() -> bool:
    """That a batch is wanted to its end."""
    return True


class Stage(Protocol):
    """What reads batches; a batch goes through as a whole.

    Each `run` follows one `enter`.
    """

    async def enter(self) -> None:
        """Returns when a batch could start at once; the place is then the caller's."""

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> Timed:
        """The readings of ROIs uint8 ``(n, z, y, x)``; each part asks first if they are ``wanted``.

        Raises:
            ModelFailed: the batch could not be read; the next one may be.
            Unwanted: it was not wanted any more, and there is a place for the next one.
        """


class ReaderStage:
    """A whole reader as one stage, in a worker thread of its own, one batch at a time."""

    def __init__(self, reader: Reader, *, clock: Clock = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._place = asyncio.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    async def enter(self) -> None:
        """See `Stage.enter`."""
        await self._place.acquire()

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> Timed:
        """See `Stage.run`."""
        loop = asyncio.get_running_loop()
        try:
            if not wanted():
                raise Unwanted
            return await loop.run_in_executor(self._worker, self._read, batch)
        finally:
            self._place.release()

    def close(self) -> None:
        """Ends the worker thread when the batch that it reads is done."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _read(self, batch: UInt8Array) -> Timed:
        began_s = self._clock()
        try:
            readings = self._reader.read(batch)
            check(readings, len(batch))
        except Exception as error:  # whatever the engine throws, the service lives on
            raise ModelFailed(f"{self._reader.name}: {type(error).__name__}: {error}") from error
        return Timed(readings, self._clock() - began_s)


def check(readings: Readings, n: int) -> None:
    """Raises ValueError where ``readings`` cannot be those of ``n`` ROIs."""
    if len(readings) != n:
        raise ValueError(f"{len(readings)} answers for {n} ROIs")
    for name in ("probability", "malignancy"):
        values = getattr(readings, name)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"a {name} outside [0, 1] in {values.tolist()}")
    diameter_mm = readings.diameter_mm
    if not np.all(np.isfinite(diameter_mm) & (diameter_mm >= 0)):
        raise ValueError(f"a diameter that cannot be in {diameter_mm.tolist()}")


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
        """See `cloud.workers.Stage.enter`."""
        await self._places[0].acquire()

    async def run(self, batch: UInt8Array, wanted: Callable[[], bool] = always) -> Timed:
        """See `cloud.workers.Stage.run`; the time is that of all steps, without waits between."""
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
