"""Offers studies to a running cloud over real gRPC, and notes what became of each ROI.

Studies as they reach a cloud from many sites: open loop, nobody waits for anybody's answer.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from imaging.volume import WINDOW_HU
from protos import codec
from protos import overread_pb2 as pb
from protos.errors import DeadlineUnmeetable, from_status
from protos.messages import Header, Priority, Roi
from protos.metadata import SITE_KEY, accepted_of, load_of
from protos.overread_pb2_grpc import OverreadStub

if TYPE_CHECKING:
    from protos.overread_pb2_grpc import OverreadAsyncStub


@dataclass(frozen=True)
class Arrival:
    """One study's escalation: when it is sent, by which edge, and what it asks.

    ``at_s`` counts from the beginning, ``rois`` are sent at once and due after ``budget_s``.
    """

    at_s: float
    edge: int
    rois: int
    budget_s: float
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True)
class Traffic:
    """What studies are like: each number of ``rois`` and each of ``budgets_s`` equally likely."""

    edges: int = 16
    rois: tuple[int, ...] = (1, 2, 3, 4)
    budgets_s: tuple[float, ...] = (0.5, 1.0, 2.0)
    stat_share: float = 0.1

    @property
    def mean_rois(self) -> float:
        """ROIs of a study, on average."""
        return sum(self.rois) / len(self.rois)


def poisson(traffic: Traffic, rois_per_s: float, span_s: float, seed: int) -> list[Arrival]:
    """The arrivals of ``span_s`` seconds: a Poisson process of ``rois_per_s`` on average."""
    rng = np.random.default_rng(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + rng.exponential(traffic.mean_rois / rois_per_s)) < span_s:
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


BROKEN_OFF = "broken off"
"""Of a stream that the cloud ended while it was written: `grpc.aio` then loses the status."""

LATE = "late"
"""What had no answer when its edge ran out of time, and was given up by it."""


@dataclass
class Offered:
    """What became of a number of studies; filled while they run.

    Attributes:
        began_s: when it began, on the monotonic clock.
        took_s: of each ROI that was answered within its budget, from sending to verdict.
        at_s: when each of them was answered, since the beginning.
        lost: how many were not, by the error's class, or ``late``.
        lag_s: how long after its time each study was sent: the generator's own fault.
        span_s: until the last has ended.
    """

    began_s: float = field(default_factory=time.monotonic)
    took_s: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    lag_s: list[float] = field(default_factory=list)
    span_s: float = 0.0

    @property
    def rois(self) -> int:
        """All that were sent, or would have been had their stream not been refused."""
        return len(self.took_s) + sum(self.lost.values())


@dataclass
class Belief:
    """What an edge was told of the cloud's queue, and the shortest round trip that it has seen."""

    queue_s: float = 0.0
    told_s: float = 0.0
    round_trip_s: float = math.inf

    def asks_first(self) -> bool:
        """Whether waiting for the cloud's word costs nothing: the agent's rule, `edge.escalation.stream`."""
        return self.queue_s - (time.monotonic() - self.told_s) > self.round_trip_s


class Edges:
    """Simulated edges, each with a channel and a site name; usable while it is entered."""

    def __init__(self, address: str, roi_shape: tuple[int, int, int], count: int) -> None:
        self._address, self._shape, self._count = address, roi_shape, count
        self._stubs: list[OverreadAsyncStub] = []
        self._beliefs = [Belief() for _ in range(count)]
        self._rois: list[pb.ReadRequest] = []
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> Edges:
        for _ in range(self._count):
            # else all channels to one address would share a connection
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(self._address, options=options)
            await self._parts.enter_async_context(channel)
            await channel.channel_ready()
            self._stubs.append(OverreadStub(channel))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def offer(
        self, arrivals: Sequence[Arrival], ended: Callable[[], None] = lambda: None
    ) -> Offered:
        """Sends each study at its time, whatever became of those before it, and waits for all.

        ``ended`` is called when one has ended.
        """
        offered = Offered()
        began_s = offered.began_s
        async with asyncio.TaskGroup() as studies:
            for arrival in arrivals:
                await asyncio.sleep(began_s + arrival.at_s - time.monotonic())
                offered.lag_s.append(time.monotonic() - began_s - arrival.at_s)
                task = studies.create_task(self._study(arrival, offered))
                task.add_done_callback(lambda _: ended())
        offered.span_s = time.monotonic() - began_s
        return offered

    async def saturate(self, rois: int, span_s: float, budget_s: float, at_once: int) -> Offered:
        """Studies of so many ROIs for ``span_s`` seconds, ``at_once`` of them open at any time."""
        offered = Offered()
        began_s = offered.began_s

        async def caller(edge: int) -> None:
            while time.monotonic() - began_s < span_s:
                await self._study(Arrival(0.0, edge, rois, budget_s), offered)

        async with asyncio.TaskGroup() as callers:
            for edge in range(at_once):
                callers.create_task(caller(edge))
        offered.span_s = time.monotonic() - began_s
        return offered

    async def _study(self, arrival: Arrival, offered: Offered) -> None:
        sent_s, open_, reason = time.monotonic(), arrival.rois, LATE
        belief = self._beliefs[arrival.edge % self._count]
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not belief.asks_first():
            accepted.set_result(arrival.rois)
        call = self._stubs[arrival.edge % self._count].Read(
            self._requests(arrival, accepted),
            timeout=arrival.budget_s,
            metadata=((SITE_KEY, f"edge-{arrival.edge}"),),
        )
        hearing = asyncio.create_task(_hear(call, arrival.rois, accepted, belief))
        try:
            async for response in call:
                kind = response.WhichOneof("response")
                if kind == "summary":
                    reason = DeadlineUnmeetable.__name__  # of what the cloud had no room for
                    continue
                open_ -= 1
                took_s = time.monotonic() - sent_s
                if kind == "refusal":
                    offered.lost[response.refusal.error] += 1
                elif took_s > arrival.budget_s:
                    offered.lost[LATE] += 1
                else:
                    offered.took_s.append(took_s)
                    offered.at_s.append(sent_s + took_s - offered.began_s)
            said = load_of(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            said = load_of(error.trailing_metadata())  # type: ignore[arg-type] # pairs, though its type does not say so
        finally:
            await hearing
        if said is not None:
            belief.queue_s, belief.told_s = said.queue_s, time.monotonic()
        offered.lost[reason] += open_

    async def _requests(
        self, arrival: Arrival, accepted: asyncio.Future[int]
    ) -> AsyncIterator[pb.ReadRequest]:
        key = uuid.uuid4().hex
        header = Header(key, "", arrival.budget_s, arrival.rois, arrival.priority)
        yield codec.encode_header(header)
        for number in range(await accepted):
            yield self._roi(number)

    def _roi(self, number: int) -> pb.ReadRequest:
        """Noise, encoded once for each number: the cloud is measured, not this."""
        while len(self._rois) <= number:
            rng = np.random.default_rng(len(self._rois))
            voxels = rng.integers(0, 256, self._shape, dtype=np.uint8)
            roi = Roi(len(self._rois), voxels, (1.0, 1.0, 1.0), WINDOW_HU, 0.5)
            self._rois.append(codec.encode_roi(roi))
        return self._rois[number]


async def _hear(call: Any, rois: int, accepted: asyncio.Future[int], belief: Belief) -> None:
    """Waits for the cloud's first sign, and tells how many ROIs may be sent."""
    began_s = time.monotonic()
    try:
        told = accepted_of(await call.initial_metadata())
        belief.round_trip_s = min(belief.round_trip_s, time.monotonic() - began_s)
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        told = 0  # the stream has ended: nothing more is sent
    if not accepted.done():
        accepted.set_result(rois if told is None else min(told, rois))


def _reason(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LATE
    if error.details() == "Internal error from Core":
        return BROKEN_OFF
    said: Any = error.trailing_metadata()  # pairs, though its type does not say so
    return from_status(error.code(), error.details(), said).kind
