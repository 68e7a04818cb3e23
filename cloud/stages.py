"""The model as a stage of the line: a batch of ROIs in, readings out, the loop never blocked."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imaging.volume import UInt8Array
from protos.deadline import Clock
from protos.errors import ModelFailed

Numbers = npt.NDArray[np.floating]


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

    def read(self, batch: UInt8Array) -> tuple[Numbers, Numbers]:
        """Probability ``(n,)`` and diameter in mm ``(n,)`` of ROIs uint8 ``(n, z, y, x)``."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What a stage says of a batch: probability ``(n,)``, diameter in mm ``(n,)``, and its time."""

    probability: Numbers
    diameter_mm: Numbers
    compute_s: float


class Stage(Protocol):
    """One step of the model; a batch goes through as a whole."""

    async def run(self, batch: UInt8Array) -> Readings:
        """The readings of ROIs uint8 ``(n, z, y, x)``.

        Raises:
            ModelFailed: the batch could not be read; the next one may be.
        """


class ReaderStage:
    """A whole reader as one stage, in a worker thread of its own, one batch at a time."""

    def __init__(self, reader: Reader, *, clock: Clock = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    async def run(self, batch: UInt8Array) -> Readings:
        """See `Stage.run`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._read, batch)

    def close(self) -> None:
        """Ends the worker thread when the batch that it reads is done."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _read(self, batch: UInt8Array) -> Readings:
        began_s = self._clock()
        try:
            probability, diameter_mm = self._reader.read(batch)
            _check(probability, diameter_mm, len(batch))
        except Exception as error:  # whatever the engine throws, the service lives on
            raise ModelFailed(f"{self._reader.name}: {type(error).__name__}: {error}") from error
        return Readings(probability, diameter_mm, self._clock() - began_s)


def _check(probability: Numbers, diameter_mm: Numbers, n: int) -> None:
    if probability.shape != (n,) or diameter_mm.shape != (n,):
        raise ValueError(f"{probability.shape} and {diameter_mm.shape} answers for {n} ROIs")
    if not np.all((probability >= 0) & (probability <= 1)):
        raise ValueError(f"a probability outside [0, 1] in {probability.tolist()}")
    if not np.all(np.isfinite(diameter_mm) & (diameter_mm >= 0)):
        raise ValueError(f"a diameter that cannot be in {diameter_mm.tolist()}")
