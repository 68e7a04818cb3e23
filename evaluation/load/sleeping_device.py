"""A device that sleeps in place of a GPU: a batch costs a fixed time and one for each ROI.

It is named by the settings that name real devices, so batches, stages and instances go the way that
they go on GPUs. A device does one thing at a time, as a GPU that one batch fills.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud.settings import CloudSettings
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings


@dataclass(eq=False)
class SleepingDevice:
    """One device, and the seconds for which it was busy."""

    busy_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, seconds: float) -> None:
        """Wait until the device is free, and use it."""
        with self._lock:
            time.sleep(seconds)
            self.busy_s += seconds


@dataclass(frozen=True)
class SleepingReader:
    """Spends ``fixed_s`` on a batch and ``each_s`` on each ROI, in equal parts on ``devices``."""

    fixed_s: float
    each_s: float
    devices: tuple[SleepingDevice, ...] = (SleepingDevice(),)
    name: str = "sleeping"
    version: str = "1"
    engine: str = "asleep:fake"
    roi_shape: tuple[int, int, int] = (48, 48, 48)

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """One function for each part: ROIs uint8 ``(n, z, y, x)`` to ROIs to `Readings`."""
        *middle, last = (self._step(device) for device in self.devices)
        return (*middle, lambda batch: _halves(last(batch)))

    def read(self, batch: UInt8Array) -> Readings:
        """Read ROIs uint8 ``(n, z, y, x)``: one half for every probability."""
        for device in self.devices:
            self._step(device)(batch)
        return _halves(batch)

    def _step(self, device: SleepingDevice) -> Callable[[UInt8Array], UInt8Array]:
        def step(batch: UInt8Array) -> UInt8Array:
            device.work((self.fixed_s + len(batch) * self.each_s) / len(self.devices))
            return batch

        return step


@dataclass
class SleepingModel:
    """Opens sleeping readers on the devices that the settings name; see `cloud.instances`."""

    settings: CloudSettings
    fixed_s: float
    each_s: float
    devices: dict[str, SleepingDevice] = field(default_factory=dict)

    def open(self, device: str, _threads: int) -> SleepingReader:
        """Open one instance on ``device``, or its parts on those of ``stage_engines``."""
        names = self.settings.stage_engines or (device,) * self.settings.stages
        parts = tuple(self.devices.setdefault(name, SleepingDevice()) for name in names)
        engine = " + ".join(dict.fromkeys(f"asleep:{name or 'fake'}" for name in names))
        return SleepingReader(self.fixed_s, self.each_s, parts, engine=engine)


def _halves(batch: UInt8Array) -> Readings:
    half, diameter_mm = np.full(len(batch), 0.5), np.full(len(batch), 6.0)
    solid, nothing = np.zeros(len(batch), np.int64), np.zeros_like(batch, bool)
    return Readings(half, diameter_mm, half, solid, nothing)
