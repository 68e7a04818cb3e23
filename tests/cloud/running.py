"""A cloud on loopback with a short honest reader, and a blocking client of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from cloud.server import CloudServer
from cloud.settings import CloudSettings
from cloud.telemetry import Telemetry
from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos import overread_pb2_grpc
from tests.plain_readings import plain

SHAPE = (8, 8, 8)


@dataclass
class MeanReader:
    """Reads the mean brightness as the probability; fails on an ROI that is all 255.

    ``gate`` holds every batch back while it is cleared; ``batches`` are the means of what
    it was given, batch by batch.
    """

    name: str = "mean"
    version: str = "2.1"
    engine: str = "numpy"
    roi_shape: tuple[int, int, int] = SHAPE
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def read(self, batch: UInt8Array) -> Readings:
        """Mean brightness as probability, and a tenth of it as diameter."""
        mean = batch.reshape(len(batch), -1).mean(axis=1)
        self.batches.append(mean.tolist())
        assert self.gate.wait(30), "a test left the gate closed"
        if np.any(mean == 255):
            raise ValueError("all 255")
        return plain(mean / 255, mean / 10)


@dataclass
class RunningCloud:
    """A server in a thread of its own, and what a test does to it."""

    address: str
    reader: MeanReader
    server: CloudServer
    telemetry: Telemetry
    loop: asyncio.AbstractEventLoop

    def drain(self) -> None:
        """Drains it as the first signal would, and returns when that is done."""
        asyncio.run_coroutine_threadsafe(self.server.drain(), self.loop).result(30)

    def count(self, sample: str, **labels: str) -> float:
        """What a metric says."""
        return self.telemetry.registry.get_sample_value(sample, labels) or 0.0

    @contextlib.contextmanager
    def stub(self) -> Iterator[Any]:
        """A blocking client; grpc-stubs knows no ``next`` of its calls."""
        with grpc.insecure_channel(self.address) as channel:
            yield overread_pb2_grpc.OverreadStub(channel)


@contextlib.contextmanager
def run_cloud(reader: MeanReader | None = None, **settings: Any) -> Iterator[RunningCloud]:
    """A cloud with ``reader``, or a mean one, for a ``with`` block."""
    reader, telemetry = reader or MeanReader(), Telemetry()
    given = CloudSettings(**{"address": "127.0.0.1:0", "grace_s": 5.0, **settings})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def await_(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    async def made() -> CloudServer:
        return CloudServer(given, reader, telemetry, service_version="0.0")

    try:
        server = await_(made())
        await_(server.__aenter__())
        reader.batches.clear()  # those of the warm-up
        try:
            yield RunningCloud(server.address, reader, server, telemetry, loop)
        finally:
            reader.gate.set()
            await_(server.__aexit__(None, None, None))
            await_(loop.shutdown_asyncgens())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
