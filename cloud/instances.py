"""Several instances of the model behind one batcher: copies in this process, or actors.

An instance is a reader of its own, with its own threads. Instances on other machines are opened by
`cloud.ray_actors`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

from cloud.errors import BadSettings
from cloud.settings import CloudSettings
from cloud.workers import OpenOne, Reader, WorkerStage
from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.errors import EngineUnavailable
from models.runtime.second_reader import Readings, open_second_reader
from models.runtime.stages import open_staged
from protos.deadline import Clock


@dataclass(frozen=True, eq=False)
class Instances:
    """Copies of one reader, each of which reads batches of its own."""

    copies: tuple[Reader, ...]

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.copies[0].name

    @property
    def version(self) -> str:
        """The artifact's version."""
        return self.copies[0].version

    @property
    def engine(self) -> str:
        """The number of copies on each engine."""
        engines = [one.engine for one in self.copies]
        return " + ".join(f"{engines.count(one)} x {one}" for one in dict.fromkeys(engines))

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """The shape of an ROI, ``(z, y, x)``."""
        return self.copies[0].roi_shape

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)`` with the first copy."""
        return self.copies[0].read(batch)


@contextmanager
def open_instances(settings: CloudSettings, open_one: OpenOne) -> Iterator[Reader]:
    """Open the instances that the settings ask for, for the time of a ``with`` block.

    ``threads`` are those of each instance; 0 divides the cores that this process may use. With
    ``ray``, ``open_one`` is called in other processes, so it must be picklable.

    Raises:
        BadSettings: Ray cannot be used.
        ModelError: whatever ``open_one`` raises.
    """
    if settings.ray:
        try:
            ray_actors = import_module("cloud.ray_actors")
        except ModuleNotFoundError as error:
            missing = f"ray is set, and {error.name} is missing: pip install 'overread[ray]'"
            raise BadSettings(missing) from error
        with ray_actors.opened_actors(settings, open_one) as actors:
            yield Instances(actors)
        return
    devices = [*(settings.devices or ("",))] * settings.instances
    if len(devices) == 1:
        yield open_one(devices[0], settings.threads)
        return
    threads = settings.threads or max(1, hardware.cores() // len(devices))
    yield Instances(tuple(open_one(device, threads) for device in devices))


def open_reader(settings: CloudSettings, device: str, threads: int) -> Reader:
    """Open one instance of the model of the settings, whole or in parts.

    Raises:
        ModelError: it cannot be opened.
    """
    name, engine, keys = settings.model, settings.engine, settings.model_keys
    try:
        if settings.stages == 1:
            return open_second_reader(
                name, engine=engine, device=device, threads=threads, keys=keys
            )
        return open_staged(
            name,
            settings.stages,
            engine=engine,
            engines=settings.stage_engines,
            device=device,
            threads=threads,
            keys=keys,
        )
    except EngineUnavailable as error:
        if not device:
            raise
        raise EngineUnavailable(f"devices names {device!r}: {error}") from error


def stages_of(reader: Reader, clock: Clock) -> list[WorkerStage]:
    """Return a stage for each instance of the reader."""
    copies = reader.copies if isinstance(reader, Instances) else (reader,)
    return [WorkerStage(one, clock=clock) for one in copies]
