"""Instances of the model that Ray places on its machines, each an actor with one copy.

Ray starts an actor again when it dies. The batches still come from the one batcher: each actor has
a stage of its own, so there is no second queue. Every machine needs this package and its extra
``ray`` in the same version, and the files that ``model_keys`` and ``model_folder`` name.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from cloud.instances import OpenOne, Reader
from cloud.settings import BadSettings, CloudSettings
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos.errors import ModelFailed

LOCAL = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""The environment of a Ray that starts here: it reports nothing to its makers, and its actors have
the priority of this process, where Ray's default is a nice value of 15."""

START_S = 300.0
"""How long an actor may take to open its copy, which includes the wait for a free machine."""

RESTART_S = 60.0
"""How long a dead actor may take to start again; then its instance is dropped."""


class _Copy:
    """What runs in the actor's process."""

    def __init__(self, open_one: OpenOne, device: str, threads: int) -> None:
        self._open_one, self._device, self._threads = open_one, device, threads

    @cached_property
    def _reader(self) -> Reader:
        """The reader, opened in the first call: an error in the constructor would lose its type."""
        return self._open_one(self._device, self._threads)

    def describe(self) -> tuple[str, str, str, tuple[int, int, int]]:
        """Return name, version, engine and ROI shape."""
        one = self._reader
        return one.name, one.version, one.engine, one.roi_shape

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)``."""
        return self._reader.read(batch)


class RayReader:
    """Reads ROIs with one actor; described as `models.runtime.second_reader` describes a reader.

    Raises:
        ModelFailed: it cannot be started in `START_S`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        described = _wait(actor.describe.remote(), START_S)
        self.name, self.version, engine, self.roi_shape = described
        self.engine = f"ray {engine}"

    def read(self, batch: UInt8Array) -> Readings:
        """Read uint8 ROIs ``(n, z, y, x)`` in the actor.

        Raises:
            ModelFailed: the actor died; Ray starts it again. Also whatever its reader raises.
        """
        readings: Readings = _wait(self._actor.read.remote(np.ascontiguousarray(batch)), None)
        return readings

    def recover(self) -> None:
        """Wait until the actor answers again; raise `ModelFailed` if not within `RESTART_S`."""
        end_s = time.monotonic() + RESTART_S
        while True:
            try:
                _wait(self._actor.describe.remote(), end_s - time.monotonic())
            except ModelFailed:
                if time.monotonic() >= end_s:
                    raise
                time.sleep(0.1)
            else:
                return


def _wait(answer: Any, timeout_s: float | None) -> Any:
    """Return the answer of an actor; its own errors are raised as they were there."""
    try:
        return ray.get(answer, timeout=None if timeout_s is None else max(0.0, timeout_s))
    except RayTaskError as error:
        raise (error.cause or ModelFailed(str(error))) from None
    except GetTimeoutError as error:
        raise ModelFailed(f"a Ray actor did not answer in {timeout_s:.0f} s") from error
    except RayActorError as error:
        raise ModelFailed(f"the Ray actor died: {str(error).splitlines()[0]}") from error
    except RayError as error:  # the cluster lost the answer, or an actor cannot be placed
        raise ModelFailed(f"Ray: {str(error).splitlines()[0]}") from error


@contextmanager
def opened_actors(settings: CloudSettings, open_one: OpenOne) -> Iterator[tuple[Reader, ...]]:
    """Join the Ray cluster, and open ``instances`` actors for the time of a ``with`` block.

    Ray reserves ``threads`` cores for each, one if that is 0, and a GPU if the device is ``cuda``.

    Raises:
        BadSettings: there is no such cluster.
        ModelFailed: an actor cannot be started.
        ModelError: whatever ``open_one`` raises.
    """
    device, threads = "".join(settings.devices), settings.threads or 1
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(address=settings.ray, log_to_driver=False, include_dashboard=False)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise BadSettings(f"ray = {settings.ray!r}: {error}") from error
    try:
        copy = ray.remote(_Copy).options(
            num_cpus=threads, num_gpus=float(device.startswith("cuda")), max_restarts=-1
        )
        actors = [copy.remote(open_one, device, threads) for _ in range(settings.instances)]
        yield tuple(RayReader(actor) for actor in actors)
    finally:
        ray.shutdown()
