"""The load generator: sends studies to a running server over gRPC, and records each ROI's outcome.

Studies arrive as from many sites, in an open loop: none waits for the answer of another. `Edges`
send a study as a stream, as an edge does.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import grpc
import numpy as np

from edge.escalation.rois import ROI_SHAPE
from imaging.volume import WINDOW_HU
from protos import codec
from protos import overread_pb2 as pb
from protos.errors import DeadlineUnmeetable, from_status, status_of
from protos.messages import (
    SITE_KEY,
    Accepted,
    Header,
    Load,
    Priority,
    Refusal,
    Roi,
    Summary,
    Verdict,
)
from protos.overread_pb2_grpc import OverreadStub


@dataclass(frozen=True)
class Arrival:
    """The escalation of one study by ``edge``.

    It is sent ``at_s`` seconds after the start; its ``rois`` are due ``budget_s`` later.
    """

    at_s: float
    edge: int
    rois: int
    budget_s: float
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True)
class Traffic:
    """The distribution of studies: all numbers of ``rois`` and all ``budgets_s`` equally likely."""

    edges: int = 16
    rois: tuple[int, ...] = (1, 2, 3, 4)
    budgets_s: tuple[float, ...] = (0.5, 1.0, 2.0)
    stat_share: float = 0.1


def poisson(traffic: Traffic, rois_per_s: float, span_s: float, seed: int) -> list[Arrival]:
    """Draw the arrivals of ``span_s`` seconds from a Poisson process with mean ``rois_per_s``."""
    rng = np.random.default_rng(seed)
    arrivals, at_s = [], 0.0
    pause_s = float(np.mean(traffic.rois)) / rois_per_s
    while (at_s := at_s + rng.exponential(pause_s)) < span_s:
        stat = rng.random() < traffic.stat_share
        arrivals.append(
            Arrival(
                at_s,
                int(rng.integers(traffic.edges)),
                int(rng.choice(traffic.rois)),
                float(rng.choice(traffic.budgets_s)),
                Priority.STAT if stat else Priority.ROUTINE,
            )
        )
    return arrivals


@cache
def noise(number: int) -> Roi:
    """Return an ROI of noise around a cube, made once."""
    voxels = np.random.default_rng(number).integers(0, 256, ROI_SHAPE, dtype=np.uint8)
    voxels[20:28, 20:28, 20:28] = 255
    return Roi(number, voxels, (1.0, 1.0, 1.0), WINDOW_HU, 0.5)


@cache
def encoded(number: int) -> pb.ReadRequest:
    """Return that ROI as a message, encoded once, so that encoding takes no time later."""
    return codec.encode_roi(noise(number))


BROKEN_OFF = "broken off"
"""A stream that the cloud ended while it was written: `grpc.aio` then loses the status."""

LATE = "late"
"""An ROI without an answer at its deadline."""


@dataclass(frozen=True)
class Outcome:
    """How one ROI of ``edge`` ended.

    ``took_s`` is counted from the time at which its study was to arrive, and ``at_s`` from the
    start. ``error`` is the class of its error, or ``late``; empty for an answer within its budget.
    """

    edge: int
    is_stat: bool
    took_s: float
    at_s: float
    error: str = ""


@dataclass
class Outcomes:
    """The outcomes of all ROIs; filled while studies run, for ``span_s`` in all.

    Of the ROIs that a service ``accepted`` by their headers, some were ``dropped`` all the same.
    """

    began_s: float = field(default_factory=time.monotonic)
    rois: list[Outcome] = field(default_factory=list)
    span_s: float = 0.0
    accepted: int = 0
    dropped: int = 0

    @property
    def in_time(self) -> list[Outcome]:
        """The ROIs that were answered within their budgets."""
        return [one for one in self.rois if not one.error]

    @property
    def lost(self) -> Counter[str]:
        """The number of other ROIs by error, those of rejected streams too."""
        return Counter(one.error for one in self.rois if one.error)


@dataclass
class CloudLoad:
    """The queue that the cloud last reported to an edge, and the edge's shortest round trip."""

    queue_s: float = 0.0
    reported_s: float = 0.0
    round_trip_s: float = math.inf

    def holds_rois(self) -> bool:
        """Return whether ROIs wait for the accepted header, as in `edge.escalation.stream`."""
        return self.queue_s - (time.monotonic() - self.reported_s) > self.round_trip_s


class Edges:
    """Simulated edges, each with a channel and a site name, for the time of an ``async with``."""

    def __init__(
        self, address: str, count: int, options: Sequence[tuple[str, str | int]] = ()
    ) -> None:
        self._address, self._count = address, count
        # otherwise all channels to one address would share a connection
        self._options = (("grpc.use_local_subchannel_pool", 1), *options)
        self._stubs: list[Any] = []
        self._loads = [CloudLoad() for _ in range(count)]
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> "Edges":
        for _ in range(self._count):
            channel = grpc.aio.insecure_channel(self._address, options=self._options)
            await self._parts.enter_async_context(channel)
            await channel.channel_ready()
            self._stubs.append(OverreadStub(channel))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def send(self, arrivals: Sequence[Arrival]) -> Outcomes:
        """Send each study at its time, and wait until all have ended."""
        outcomes = Outcomes()
        began_s = outcomes.began_s
        async with asyncio.TaskGroup() as studies:
            for arrival in arrivals:
                await asyncio.sleep(began_s + arrival.at_s - time.monotonic())
                studies.create_task(self._study(arrival, outcomes))
        outcomes.span_s = time.monotonic() - began_s
        return outcomes

    async def saturate(self, rois: int, span_s: float, budget_s: float, at_once: int) -> Outcomes:
        """Keep ``at_once`` studies of ``rois`` ROIs each open for ``span_s`` seconds."""
        outcomes = Outcomes()
        began_s = outcomes.began_s

        async def caller(edge: int) -> None:
            while time.monotonic() - began_s < span_s:
                at_s = time.monotonic() - began_s
                await self._study(Arrival(at_s, edge, rois, budget_s), outcomes)

        async with asyncio.TaskGroup() as callers:
            for edge in range(at_once):
                callers.create_task(caller(edge))
        outcomes.span_s = time.monotonic() - began_s
        return outcomes

    async def _study(self, arrival: Arrival, outcomes: Outcomes) -> None:
        open_, reason, stat = arrival.rois, LATE, arrival.priority is Priority.STAT

        def ended(error: str, rois: int = 1) -> None:
            at_s = time.monotonic() - outcomes.began_s
            one = Outcome(arrival.edge, stat, at_s - arrival.at_s, at_s, error)
            outcomes.rois += [one] * rois

        load = self._loads[arrival.edge % self._count]
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not load.holds_rois():
            accepted.set_result(arrival.rois)
        call = self._stubs[arrival.edge % self._count].Read(
            self._requests(arrival, accepted),
            timeout=arrival.budget_s,
            metadata=((SITE_KEY, f"edge-{arrival.edge}"),),
        )
        timing = asyncio.create_task(_time_round_trip(call, load))
        promised = 0
        reported: Load | None = None
        try:
            async for response in call:
                message = codec.decode_response(response)
                if isinstance(message, Accepted):
                    promised = min(message.rois, arrival.rois)
                    outcomes.accepted += promised
                    if not accepted.done():
                        accepted.set_result(min(message.rois, arrival.rois))
                        beyond = arrival.rois - accepted.result()  # the edge knows at once
                        ended(DeadlineUnmeetable.__name__, beyond)
                        open_ -= beyond
                    continue
                if isinstance(message, Summary):
                    reason = DeadlineUnmeetable.__name__  # of ROIs beyond the cloud's capacity
                    reported = message.load
                    continue
                open_ -= 1
                promised -= isinstance(message, Verdict)
                took_s = time.monotonic() - outcomes.began_s - arrival.at_s
                late = LATE if took_s > arrival.budget_s else ""
                ended(message.error if isinstance(message, Refusal) else late)
        except grpc.aio.AioRpcError as error:
            metadata: Any = error.trailing_metadata()  # pairs, though its type does not say so
            reason, reported = reason_of(error), codec.load_of(metadata)
        finally:
            if not accepted.done():
                accepted.set_result(0)  # the stream has ended: no ROI is sent
            await timing
        outcomes.dropped += max(0, promised)
        if reported is not None:
            load.queue_s, load.reported_s = reported.queue_s, time.monotonic()
        ended(reason, open_)

    async def _requests(
        self, arrival: Arrival, accepted: asyncio.Future[int]
    ) -> AsyncIterator[pb.ReadRequest]:
        key = uuid.uuid4().hex
        header = Header(key, "", arrival.budget_s, arrival.rois, arrival.priority)
        yield codec.encode_header(header)
        for number in range(await accepted):
            yield encoded(number)


async def _time_round_trip(call: Any, load: CloudLoad) -> None:
    """Measure the time to the cloud's first response."""
    began_s = time.monotonic()
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call.initial_metadata()
        load.round_trip_s = min(load.round_trip_s, time.monotonic() - began_s)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return `LATE`, the class of an error of Overread, or a status with its details."""
    metadata: Any = error.trailing_metadata()  # pairs, though its type does not say so
    if error.details() == "Internal error from Core":
        return BROKEN_OFF
    if status_of(metadata) is not None:
        return from_status(error.code(), error.details(), metadata).kind
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LATE
    return f"{error.code().name}: {error.details()}"
