"""Instances as Ray actors: two on a Ray of this machine, which one test starts."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from ray.exceptions import RaySystemError

from cloud.instances import Instances
from cloud.ray_actors import _wait
from cloud.run import opened_reader
from cloud.scheduling import batcher as module
from cloud.scheduling.batcher import Batcher
from cloud.settings import CloudSettings
from models.runtime.errors import UnknownArtifact
from models.runtime.second_reader import Readings
from protos.deadline import Deadline
from protos.errors import ModelFailed
from protos.messages import Priority
from tests.cloud.scheduling.builders import batcher_of
from tests.plain_readings import plain

SETTINGS = CloudSettings(ray="local", instances=2)


class Reader:
    """Says as the diameter which process read it; 255 fails, 200 ends the process, 201 hangs."""

    name, version, engine, roi_shape = "ray test", "1", "numpy", (2, 2, 2)

    def read(self, batch: Any) -> Readings:
        if batch.max() == 200:
            os._exit(1)
        if batch.max() == 201:
            time.sleep(3600)
        if batch.max() == 255:
            raise ValueError("all 255")
        return plain([0.5] * len(batch), [float(os.getpid())] * len(batch), side=2)


def open_one(device: str, threads: int) -> Reader:
    """What each actor opens."""
    assert (device, threads) == ("", 1)
    return Reader()


def fails(_device: str, _threads: int) -> Reader:
    raise UnknownArtifact("no such model")


@pytest.fixture(autouse=True)
def local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, whatever this machine has; they find the tests."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
"""Ray's own."""


def submit(batcher: Batcher, value: int) -> asyncio.Future[Any]:
    """Queue one ROI of this value."""
    voxels = np.full((2, 2, 2), value, np.uint8)
    return batcher.submit(lambda: voxels, Deadline.after(100.0), Priority.ROUTINE)


async def processes(batcher: Batcher) -> set[float]:
    """The processes that read 60 ROIs."""
    results = await asyncio.gather(*(submit(batcher, 1) for _ in range(60)))
    return {one.reading.diameter_mm for one in results}


def run(reader: Any, scenario: Callable[[Batcher], Coroutine[Any, Any, None]]) -> None:
    """Run ``scenario`` with a batcher of the reader's instances."""

    async def with_batcher() -> None:
        async with batcher_of(reader, 1) as batcher:
            await scenario(batcher)

    asyncio.run(with_batcher())


def test_two_workers_read_and_a_dead_one_starts_again() -> None:
    """The other gets its batch, for once; then both read again. An error of the model is told."""

    async def scenario(batcher: Batcher) -> None:
        before = await processes(batcher)
        assert len(before) == 2
        assert os.getpid() not in before
        with pytest.raises(ModelFailed, match="ValueError: all 255"):
            await submit(batcher, 255)
        with pytest.raises(ModelFailed, match="Ray actor died"):
            await submit(batcher, 200)
        after = await processes(batcher)
        while len(after) < 2:
            after = await processes(batcher)
        assert not before & after  # the batch that killed one was given to the other
        assert len(batcher.queue.busy_until_s) == 2

    with opened_reader(SETTINGS, open_one) as reader:
        assert isinstance(reader, Instances)
        assert reader.engine == "2 x ray numpy"
        assert (reader.name, reader.version, reader.roi_shape) == ("ray test", "1", (2, 2, 2))
        run(reader, scenario)


def test_a_hanging_actor_is_dropped_and_an_error_at_the_start_keeps_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(batcher: Batcher) -> None:
        monkeypatch.setattr(module, "MIN_HUNG_S", 1.0)
        hung = submit(batcher, 201)
        while not batcher._running:
            await asyncio.sleep(0.01)
        hung.cancel()  # the other would hang too
        while len(batcher.queue.busy_until_s) == 2:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(module, "MIN_HUNG_S", 60.0)
        assert len(batcher.queue.busy_until_s) == 1
        assert len(await processes(batcher)) == 1

    with opened_reader(SETTINGS, open_one) as reader:
        run(reader, scenario)
    with pytest.raises(UnknownArtifact, match="no such model"), opened_reader(SETTINGS, fails):
        pass


def test_whatever_ray_raises_is_a_failure_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start it ends the command with one line, later it fails one batch."""

    def lost(*_: Any, **_more: Any) -> None:
        raise RaySystemError("the answer is lost\nfor good")

    monkeypatch.setattr("ray.get", lost)
    with pytest.raises(ModelFailed, match=r"^Ray: System error: the answer is lost$"):
        _wait(None, 1.0)
