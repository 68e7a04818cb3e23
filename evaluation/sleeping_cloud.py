"""The cloud service with a reader that sleeps in place of a model.

``python -m evaluation.sleeping_cloud --fixed-ms 20 --each-ms 5 --ready-file FILE`` serves. A batch
costs a fixed time and one for each ROI. The devices have the names of the settings, so batches,
stages and instances go the way that they go on GPUs; each does one thing at a time, as a GPU that
one batch fills. Probability and outline of an ROI depend on its middle alone: they are known
beforehand, whatever the size in which it is sent.
"""

import asyncio
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from cloud.instances import OpenOne, open_reader
from cloud.run import opened_reader
from cloud.scheduling.scheduler import Queue, Scheduler
from cloud.scheduling.waiting import WaitingRoi
from cloud.server import CloudServer, serve
from cloud.settings import CloudSettings, load_settings
from cloud.telemetry import CloudTelemetry
from edge.atomic_files import write_atomically
from edge.escalation.rois import ROI_SHAPE
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from process.endpoints import serving_metrics
from process.logs import configure_logging
from protos.errors import Overloaded

DIAMETER_MM = 6.0

AWAKE = ("evaluation.sleeping_cloud", "--awake")
"""The service with a model, as `cloud serve`; it may have another order."""


class EarliestDeadline(Scheduler):
    """Reads the earliest deadline first; refuses nothing on arrival, and drops what is late.

    It knows neither priority nor site.
    """

    gives_way = False

    def admit(self, newcomers: Sequence[WaitingRoi]) -> int:
        """Admit the newcomers while there is room."""
        if len(self.waiting) + len(newcomers) > self.rules.max_queued:
            raise Overloaded("the queue is full", limit=self.rules.max_queued)
        return len(newcomers)

    def order(
        self, queues: Mapping[bool, Queue], start_s: float, each_s: float = 0.0
    ) -> list[WaitingRoi]:
        """Return the ROIs by deadline."""
        del start_s, each_s
        rois = [roi for queue in queues.values() for *_, roi in queue]
        return sorted(rois, key=lambda roi: (roi.deadline.at_s, roi.number))


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
    roi_shape: tuple[int, int, int] = ROI_SHAPE

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """One function for each part: ROIs uint8 ``(n, z, y, x)`` to ROIs to `Readings`."""
        *middle, last = (self._step(device) for device in self.devices)
        return (*middle, lambda batch: _readings(last(batch)))

    def read(self, batch: UInt8Array) -> Readings:
        """Read ROIs uint8 ``(n, z, y, x)``: `probability_of` each, and the same for the rest."""
        for device in self.devices:
            self._step(device)(batch)
        return _readings(batch)

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


def probability_of(roi: UInt8Array) -> float:
    """Return a probability in [0.01, 0.99]: a hash of the 2 x 2 x 2 voxels in the middle."""
    z, y, x = (side // 2 for side in roi.shape)
    middle = roi[z - 1 : z + 1, y - 1 : y + 1, x - 1 : x + 1]
    digest = hashlib.blake2b(middle.tobytes(), digest_size=4).digest()
    return 0.01 + 0.98 * int.from_bytes(digest, "big") / 2**32


def outline_of(roi: UInt8Array) -> npt.NDArray[np.bool_]:
    """Return the nodule's voxels: a cube of 4 in the middle where it is a probable nodule."""
    outline = np.zeros(roi.shape, bool)
    z, y, x = (slice(side // 2 - 2, side // 2 + 2) for side in roi.shape)
    outline[z, y, x] = probability_of(roi) >= 0.5
    return outline


def _readings(batch: UInt8Array) -> Readings:
    count = len(batch)
    probability = np.array([probability_of(roi) for roi in batch])
    unsure, solid = np.full(count, 0.5), np.zeros(count, np.int64)
    outline = np.array([outline_of(roi) for roi in batch])
    return Readings(probability, np.full(count, DIAMETER_MM), unsure, solid, outline)


def program(fixed_ms: float, each_ms: float) -> tuple[str, ...]:
    """Return this module with its options, as `evaluation.world.running_cloud` takes it."""
    times = ("--fixed-ms", str(fixed_ms), "--each-ms", str(each_ms))
    return ("evaluation.sleeping_cloud", *times)


def main(
    ready_file: Annotated[Path, typer.Option(help="File that gets the address when serving.")],
    address: str = "127.0.0.1:0",
    config: Annotated[Path | None, typer.Option(help="Settings file of the cloud.")] = None,
    fixed_ms: float = 20.0,
    each_ms: float = 5.0,
    awake: Annotated[bool, typer.Option("--awake", help="Read with the settings' model.")] = False,
    edf: Annotated[bool, typer.Option("--edf", help="Earliest deadline first.")] = False,
) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(config, address=address)
    opened: OpenOne = SleepingModel(settings, fixed_ms / 1e3, each_ms / 1e3).open
    if awake:
        opened = partial(open_reader, settings)
    configure_logging("text", sys.stderr)
    telemetry = CloudTelemetry()
    with opened_reader(settings, opened) as reader:

        async def run() -> None:
            order = EarliestDeadline if edf else Scheduler
            version = reader.name
            server = CloudServer(
                settings, reader, telemetry, service_version=version, scheduler=order
            )
            with serving_metrics(telemetry.registry, settings.metrics_address, {}, {}):
                ready = ready_file
                await serve(server, ready=lambda at: write_atomically(ready, at.encode()))

        asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
