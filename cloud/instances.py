"""Instances of the model behind one batcher: copies in this process, or actors of Ray.

An instance is a reader of its own, with its own threads. Its stage runs it on batches in worker
threads, so that the event loop is free.

A model may be split into steps, which then work on different batches at the same time. A batch
moves on only when the next step is free, and only then lets the next batch in: no batch waits
between two steps while one with an earlier deadline waits before the first.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cloud.settings import CloudSettings
from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.errors import EngineUnavailable
from models.runtime.package import WEIGHTS
from models.runtime.second_reader import Opening, Readings, open_second_reader
from models.runtime.stages import open_staged
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
        """Read ROIs uint8 ``(n, z, y, x)``."""


OpenOne = Callable[[str, int], Reader]
"""Opens one instance on a device, empty where the engine chooses it, with a number of threads."""


class Instances:
    """Copies of one reader, each of which reads batches of its own; described as one reader."""

    def __init__(self, copies: Sequence[Reader]) -> None:
        first, engines = copies[0], [one.engine for one in copies]
        self.copies, self.name, self.version = copies, first.name, first.version
        self.roi_shape = first.roi_shape
        self.engine = " + ".join(f"{engines.count(one)} x {one}" for one in dict.fromkeys(engines))

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)`` with the first copy."""
        return self.copies[0].read(batch)


def open_instances(settings: CloudSettings, open_one: OpenOne) -> Reader:
    """Open the instances that the settings ask for in this process; raise as ``open_one``.

    ``threads`` are those of each instance; 0 divides the cores that this process may use.
    """
    devices = [*(settings.devices or ("",))] * settings.instances
    if len(devices) == 1:
        return open_one(devices[0], settings.threads)
    threads = settings.threads or max(1, hardware.cores() // len(devices))
    return Instances([open_one(device, threads) for device in devices])


def open_reader(settings: CloudSettings, device: str, threads: int) -> Reader:
    """Open one instance of the model, whole or in parts; raise `ModelError` if it cannot be."""
    given = Opening(
        engine=settings.engine,
        device=device,
        threads=threads,
        keys=settings.model_keys,
        folder=(settings.model_folder or WEIGHTS).absolute(),
    )
    try:
        if settings.stages == 1:
            return open_second_reader(settings.model, **given)
        return open_staged(settings.model, settings.stages, engines=settings.stage_engines, **given)
    except EngineUnavailable as error:
        if not device:
            raise
        raise EngineUnavailable(f"devices names {device!r}: {error}") from error


CLOSE_S = 1.0
"""How long to wait at the end for the steps that run."""

_THREAD_NAME = "overread-step"

Step = Callable[[Any], Any]
"""One step of a model: the first takes ROIs uint8 ``(n, z, y, x)``, the last gives `Readings`."""


@dataclass(frozen=True, eq=False)
class BatchResult:
    """The readings of a batch, and the time that the model took."""

    readings: Readings
    compute_s: float


class BatchAbandoned(asyncio.CancelledError):
    """The batch was not read to its end, because no caller waits for it any more.

    ``compute_s`` was spent on it.
    """

    def __init__(self, compute_s: float = 0.0) -> None:
        super().__init__("no caller waits for this batch any more")
        self.compute_s = compute_s


class WorkerStage:
    """Runs a whole model, or its ``steps`` if it has any, in one worker thread each.

    A batch is read as a whole; every `run` must follow one `enter`. If the reader has ``recover``,
    the next `enter` after a failed batch calls it, and lets no batch in before it returns.
    """

    def __init__(self, reader: Reader, *, clock: Clock = time.monotonic) -> None:
        self._name, self._clock = reader.name, clock
        self._steps: Sequence[Step] = reader.steps if hasattr(reader, "steps") else (reader.read,)
        self._recover: Callable[[], None] | None = getattr(reader, "recover", None)
        self._failed = False
        self._locks = [asyncio.Lock() for _ in self._steps]
        self._workers = [
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{_THREAD_NAME}{i}")
            for i in range(len(self._steps))
        ]

    async def enter(self) -> None:
        """Reserve the stage once a batch could start; raise `ModelFailed` if it cannot recover."""
        await self._locks[0].acquire()
        if self._failed and self._recover is not None:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._workers[0], self._recover)
            except Exception as error:  # an engine's own errors have no common class
                self._locks[0].release()
                raise ModelFailed(f"{self._name}: {type(error).__name__}: {error}") from error
            except asyncio.CancelledError:
                self._locks[0].release()
                raise
        self._failed = False

    async def run(
        self, batch: UInt8Array, is_wanted: Callable[[], bool] = lambda: True
    ) -> BatchResult:
        """Read ROIs uint8 ``(n, z, y, x)``; ``is_wanted`` is called before each step.

        The time is that of all steps, without the waits between them.

        Raises:
            ModelFailed: the batch could not be read; the next one may be.
            BatchAbandoned: the batch is no longer wanted; the stage is free for the next one.
        """
        loop = asyncio.get_running_loop()
        work: Any = batch
        held, compute_s = self._locks[0], 0.0
        try:
            for i, lock in enumerate(self._locks):
                # take the next step before leaving this one, so that batches stay in order
                if i > 0:
                    await lock.acquire()
                    held.release()
                    held = lock
                if not is_wanted():
                    raise BatchAbandoned(compute_s)
                work, took_s = await loop.run_in_executor(self._workers[i], self._timed, i, work)
                compute_s += took_s
            _check_readings(work, len(batch))
        except Exception as error:  # whatever the engine raises, the service must survive
            self._failed = True
            raise ModelFailed(f"{self._name}: {type(error).__name__}: {error}") from error
        finally:
            held.release()
        return BatchResult(work, compute_s)

    async def close(self) -> None:
        """Stop the worker threads after the steps that they run now; wait `CLOSE_S` for these.

        A step that takes longer hangs, and so does its thread: only the end of the process ends it.
        """
        for worker in self._workers:
            worker.shutdown(wait=False, cancel_futures=True)
        end_s = time.monotonic() + CLOSE_S
        while hanging_steps() and time.monotonic() < end_s:
            await asyncio.sleep(0.01)

    def _timed(self, i: int, work: Any) -> tuple[Any, float]:
        began_s = self._clock()
        return self._steps[i](work), self._clock() - began_s


def hanging_steps() -> list[str]:
    """Return the names of worker threads that still run; none after `WorkerStage.close`."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(_THREAD_NAME)]


def _check_readings(readings: Readings, n: int) -> None:
    """Raise ValueError if ``readings`` cannot be those of ``n`` ROIs."""
    if len(readings) != n:
        raise ValueError(f"{len(readings)} answers for {n} ROIs")
    for name in ("probability", "malignancy"):
        values = getattr(readings, name)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"{name} outside [0, 1]: {values.tolist()}")
    diameter_mm = readings.diameter_mm
    if not np.all(np.isfinite(diameter_mm) & (diameter_mm >= 0)):
        raise ValueError(f"diameter not finite or negative: {diameter_mm.tolist()}")


def stages_of(reader: Reader, clock: Clock) -> list[WorkerStage]:
    """Return a stage for each instance of the reader."""
    copies = reader.copies if isinstance(reader, Instances) else (reader,)
    return [WorkerStage(one, clock=clock) for one in copies]
