"""A cloud on loopback with a short reader, studies to send to it, and a blocking client."""

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pkgutil import resolve_name
from typing import Any

import grpc
import numpy as np
import pytest

from cloud.limits import Bounds
from cloud.server import CloudServer
from cloud.settings import CloudSettings
from cloud.telemetry import CloudTelemetry
from imaging.volume import WINDOW_HU, UInt8Array
from models.runtime.second_reader import Readings
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.deadline import Clock
from protos.errors import OverreadError, from_status
from protos.messages import Accepted, Header, Refusal, Roi, Summary, Verdict
from tests.plain_readings import plain

SHAPE = (8, 8, 8)

_KEYS = itertools.count(1)


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
        assert self.gate.wait(120), "a test left the gate closed"
        if np.any(mean == 255):
            raise ValueError("all 255")
        return plain(mean / 255, mean / 10)


@dataclass
class RunningCloud:
    """A server in a thread of its own, and what a test does to it."""

    address: str
    reader: MeanReader
    server: CloudServer
    telemetry: CloudTelemetry
    loop: asyncio.AbstractEventLoop

    def drain(self) -> None:
        """Drains it as the first signal would, and returns when that is done."""
        asyncio.run_coroutine_threadsafe(self.server.drain(), self.loop).result(30)

    def count(self, sample: str, **labels: str) -> float:
        """The value of a metric, by its name after ``overread_cloud_``."""
        name = f"overread_cloud_{sample}"
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0

    def counts(self, counter: str, label: str) -> dict[str, int]:
        """All values of a counter by one of its labels, without zeros."""
        found: Counter[str] = Counter()
        for family in self.telemetry.registry.collect():
            for sample in family.samples:
                if sample.name == f"overread_cloud_{counter}_total":
                    found[sample.labels[label]] += int(sample.value)
        return {value: count for value, count in found.items() if count}

    @property
    def open_streams(self) -> int:
        return int(self.count("open_streams"))

    @property
    def queued(self) -> int:
        return int(self.count("queued_rois"))

    @property
    def taken(self) -> int:
        """ROIs that the model was given so far."""
        return sum(map(len, self.reader.batches))

    @contextlib.contextmanager
    def stub(self) -> Iterator[Any]:
        """A blocking client; grpc-stubs knows no ``next`` of its calls."""
        with grpc.insecure_channel(self.address) as channel:
            yield overread_pb2_grpc.OverreadStub(channel)


@contextlib.contextmanager
def run_cloud(
    reader: MeanReader | None = None, *, clock: Clock = time.monotonic, **settings: Any
) -> Iterator[RunningCloud]:
    """A cloud with ``reader``, or a mean one, for a ``with`` block.

    ``settings`` may have bounds too, see `cloud.limits.Bounds`.
    """
    reader, telemetry = reader or MeanReader(), CloudTelemetry()
    bounds = Bounds(**{one.name: settings.pop(one.name) for one in fields(Bounds)
                       if one.name in settings})  # fmt: skip
    given = CloudSettings(**{"address": "127.0.0.1:0", "grace_s": 5.0, **settings})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def await_(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    async def made() -> CloudServer:
        return CloudServer(
            given, reader, telemetry, service_version="0.0", clock=clock, bounds=bounds
        )

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


def make_roi(roi_id: int, value: int = 51, **fields: Any) -> Roi:
    """An ROI that the reader reads as ``value / 255``."""
    given = {
        "voxels": np.full(SHAPE, value, np.uint8),
        "spacing_mm": (1.0, 1.0, 1.0),
        "window_hu": WINDOW_HU,
        "edge_score": 0.5,
    }
    return Roi(roi_id, **{**given, **fields})


def make_stream(*rois: Roi, **header: Any) -> list[pb.ReadRequest]:
    """The requests of one study, each with a key of its own; header fields may be given."""
    given = {
        "study_key": f"k{next(_KEYS)}",
        "model_version": "",
        "budget_s": 10.0,
        "roi_count": len(rois),
    }
    first = codec.encode_header(Header(**{**given, **header}))
    return [first, *(codec.encode_roi(roi) for roi in rois)]


def read(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> list[Verdict | Refusal | Summary]:
    """The responses of a study's stream after the first; raises what the edge would raise."""
    with cloud.stub() as stub, typed():
        return list(map(codec.decode_response, answers(stub.Read(iter(requests), timeout=20))))  # type: ignore[arg-type]


def answers(call: Any) -> Iterator[pb.ReadResponse]:
    """The responses of a call after the first, which says how many ROIs are accepted."""
    accepted_of(call)
    return iter(call)


def accepted_of(call: Any) -> int:
    """How many ROIs the first response of a call accepts."""
    message = codec.decode_response(next(call))
    assert isinstance(message, Accepted)
    return message.rois


def outcomes_by_id(responses: Any) -> dict[int, Any]:
    """Verdicts and refusals by the number of their ROI."""
    return {one.roi_id: one for one in responses if not isinstance(one, Summary)}


def refused(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> OverreadError:
    """The error that ends a study's stream."""
    with pytest.raises(OverreadError) as caught:
        read(cloud, requests)
    return caught.value


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Raises a status as its error, as the edge does."""
    try:
        yield
    except grpc.RpcError as caught:
        error: Any = caught  # a call's error is its own status
        raise from_status(error.code(), error.details(), error.trailing_metadata()) from None


def end_of(call: Any) -> str | None:
    """The class of the error that ends a study, as the edge would meet it; None for a good end."""
    try:
        with typed():
            list(call)
    except OverreadError as error:
        return error.kind
    return None


def noted(patch: pytest.MonkeyPatch, function: str) -> list[Any]:
    """What the function of this full name returns from now on."""
    returned, own = list[Any](), resolve_name(function)

    def note(*given: Any, **more: Any) -> Any:
        returned.append(own(*given, **more))
        return returned[-1]

    patch.setattr(function, note)
    return returned


def connected(address: str) -> socket.socket:
    """A connection to HOST:PORT that says nothing yet."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def until(holds: Callable[[], bool]) -> None:
    """Waits until what it is given holds; fails when it does not come to."""
    end_s = time.monotonic() + 300.0
    while not holds():
        assert time.monotonic() < end_s, "it never came to hold"
        time.sleep(0.005)


@contextlib.contextmanager
def unfinished(*requests: pb.ReadRequest) -> Iterator[Iterator[pb.ReadRequest]]:
    """Requests of a caller that never closes its stream, while entered."""
    leave = threading.Event()

    def send() -> Iterator[pb.ReadRequest]:
        yield from requests
        leave.wait(120)

    try:
        yield send()
    finally:
        leave.set()
