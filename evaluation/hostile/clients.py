"""``overread-eval hostile-clients``: what hostile clients cost the honest ones.

One honest and one hostile site use the same cloud, whose reader sleeps; they differ by their
address, 127.0.0.1 and ::1. The honest one sends at less than its fair share, alone and beside each
attack in turn, A B A B. Then a quiet site sends a study now and then while the cloud is flooded,
and studies hold their places without work until after their deadline.
"""

import asyncio
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from evaluation.errors import ServiceFailed
from evaluation.links.wire import PREFACE
from evaluation.load.services import pinned, split_cores
from evaluation.load.traffic import Arrival, Edges, Traffic, encoded, poisson
from evaluation.process_memory import peak_memory, resident_mb
from evaluation.run import SHARE, Bar, Result, Table, command, each
from evaluation.sleeping_cloud import program
from evaluation.world import Cloud, Process, running_cloud
from protos import codec
from protos import overread_pb2 as pb
from protos.messages import SITE_KEY, Header, Priority
from protos.overread_pb2_grpc import OverreadStub

ROUNDS, SPAN_S = 3, 5.0
"""Rounds of every measurement, and the seconds of each."""
ASKED = 0.25
"""Part of the capacity that the honest site asks for: its fair share beside another is a half."""
HONEST = Traffic(edges=4)
WARM_UP_S = 3.0
"""The honest site sends for so long before the attack is on and its ROIs count."""
CONNECTED_S = 20.0
"""Seconds in which the honest site must be connected."""
PAUSE_S, QUIET_BUDGET_S = 3.0, 1.0
"""A quiet site sends a study each 3 s, so that it is not active between two; their budget."""
RATE_BAR, FREE_BAR_S, MEMORY_BAR_MB = 0.95, 1.0, 450.0
CALLERS = 48
"""Studies that a hostile client keeps open at once."""
HELD, HELD_BUDGET_S = 150, 3.0
"""Studies that hold places without work, and their budget."""
CONNECTIONS, UNFINISHED = 40, 32
"""Connections, and the unfinished messages of each."""
PARTS = 3
"""Frames of 16 KiB that are sent of each message; it has more."""
SILENT = 1_200
"""Connections that begin no call."""
READ, CHECK = "/overread.v1.Overread/Read", "/grpc.health.v1.Health/Check"
READER_MS = 10.0, 10.0
"""Of the reader that sleeps: of a batch, and of each ROI."""
LONG_S = 600.0

Attack = Callable[[str], Coroutine[Any, Any, None]]
"""Attacks the service at an address until it is cancelled."""


@dataclass(frozen=True)
class Target:
    """The service, and the addresses at which the two sites reach it."""

    honest: str
    hostile: str
    cloud: Cloud


@contextmanager
def target(times_ms: tuple[float, float] = READER_MS) -> Iterator[Target]:
    """Run a cloud that both sites reach, with a reader that sleeps."""
    if not has_ipv6():
        raise ServiceFailed("loopback has no IPv6, which tells the two sites apart: enable it")
    open_to_all = {"insecure": True, "stat_sites": ["127.0.0.1"]}
    with running_cloud(program(*times_ms), "[::]:0", **open_to_all) as cloud:
        port = cloud.address.rpartition(":")[2]
        yield Target(f"127.0.0.1:{port}", f"[::1]:{port}", cloud)


def has_ipv6() -> bool:
    """Return whether loopback has IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ROIS = tuple(map(encoded, range(4)))


def _header(
    rois: int, budget_s: float, priority: Priority = Priority.ROUTINE, key: str = ""
) -> pb.ReadRequest:
    return codec.encode_header(Header(key or uuid.uuid4().hex, "", budget_s, rois, priority))


@asynccontextmanager
async def _channels(address: str, count: int) -> AsyncIterator[list[Any]]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(address, options) for _ in range(count)]
        yield [OverreadStub(await stack.enter_async_context(one)) for one in opened]


async def _read(
    stub: Any, *requests: pb.ReadRequest, silent_s: float = 0.0, site: str = ""
) -> None:
    """Send requests, be silent before the stream's end, and read all answers."""

    async def stream() -> AsyncIterator[pb.ReadRequest]:
        for request in requests:
            yield request
        await asyncio.sleep(silent_s)

    metadata = ((SITE_KEY, site),) if site else ()
    async for _ in stub.Read(stream(), timeout=LONG_S, metadata=metadata):
        pass


async def _new_name(stub: Any, budget_s: float) -> None:
    header = _header(4, budget_s, Priority.STAT)
    await _read(stub, header, *ROIS, site=f"site-{uuid.uuid4().hex}")


async def _header_only(stub: Any, budget_s: float, key: str = "") -> None:
    await _read(stub, _header(64, budget_s, key=key))


async def _silent(stub: Any, budget_s: float) -> None:
    await _read(stub, _header(64, budget_s), ROIS[0], silent_s=LONG_S)


async def _unread(stub: Any, budget_s: float) -> None:
    call = stub.Read(timeout=LONG_S)
    await call.write(_header(64, budget_s))
    for number in range(64):
        await call.write(ROIS[number % len(ROIS)])
    await asyncio.sleep(LONG_S)


Study = Callable[[Any, float], Coroutine[Any, Any, None]]
"""Sends one hostile study with a budget, over a connection."""


def _always(study: Study, budget_s: float) -> Attack:

    async def attack(address: str) -> None:
        async def caller(stub: Any) -> None:
            while True:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await study(stub, budget_s)
                await asyncio.sleep(0.005)

        async with _channels(address, 8) as stubs:
            await asyncio.gather(*(caller(stubs[i % 8]) for i in range(CALLERS)))

    return attack


async def _filled_key(address: str) -> None:
    """Send headers with a key of which many verdicts are cached."""
    async with _channels(address, 1) as (stub,):
        await _read(stub, _header(64, 60.0, key="filled"), *map(encoded, range(64)))
    await _always(partial(_header_only, key="filled"), 2.0)(address)


async def _hold(address: str, path: str) -> None:
    """Open calls over a connection, and send half of each message."""
    part = (b"\0" + (110_000).to_bytes(4, "big")).ljust(16_384, b"\1")
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", path),
        (":authority", address), ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(PREFACE + SettingsFrame(0).serialize())
    encoder, number, allowed, opened, due = Encoder(), 1, 65_535, set[int](), list[int]()
    try:
        while True:
            while len(opened) < UNFINISHED:  # others in place of those that were ended
                head = HeadersFrame(number, encoder.encode(fields), flags=["END_HEADERS"])
                writer.write(head.serialize())
                opened.add(number)
                due += [number] * PARTS
                number += 2
            while due and allowed >= len(part):
                writer.write(DataFrame(due.pop(0), part).serialize())
                allowed -= len(part)
            frame, length = Frame.parse_frame_header(memoryview(await reader.readexactly(9)))
            frame.parse_body(memoryview(await reader.readexactly(length)))
            if isinstance(frame, WindowUpdateFrame):
                allowed += 0 if frame.stream_id else frame.window_increment
            elif isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags:
                opened.discard(frame.stream_id)
                due = [one for one in due if one != frame.stream_id]
                await asyncio.sleep(0.05)
    finally:
        writer.close()


async def _say(address: str, said: bytes) -> None:
    """Open a connection, and say little or nothing."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        for byte in said:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.5)
        await reader.read()
    finally:
        writer.close()


def connections(count: int, one: Callable[[str], Coroutine[Any, Any, None]]) -> Attack:
    """Return the attack of ``count`` connections, each opened again when it is closed."""

    async def attack(address: str) -> None:
        async def again() -> None:
            while True:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await one(address)
                await asyncio.sleep(0.2)

        await asyncio.gather(*(again() for _ in range(count)))

    return attack


HOLDS: dict[str, Study] = {"one ROI, then silence": _silent, "answers that are not read": _unread}
"""Attacks that hold places without work."""
ATTACKS: dict[str, Attack] = {
    "a new site name for each study, all stat": _always(_new_name, 2.0),
    "headers without ROIs": _always(_header_only, 2.0),
    **{name: _always(study, LONG_S) for name, study in HOLDS.items()},
    "messages without an end": connections(CONNECTIONS, partial(_hold, path=READ)),
    "unary messages without an end": connections(CONNECTIONS, partial(_hold, path=CHECK)),
    "silent connections": connections(SILENT, partial(_say, said=b"")),
    "slow handshakes": connections(SILENT, partial(_say, said=PREFACE)),
    "headers with a filled cache key": _filled_key,
}


async def answered(service: Target, arrivals: Sequence[Arrival], attack: str | None) -> float:
    """Send honest studies; return the part of the ROIs after the warm-up that is read in time.

    For these the honest site connects again, beside the attack; 0 where it cannot.
    """
    ready_s = asyncio.get_running_loop().time() + WARM_UP_S
    counted = [replace(one, at_s=one.at_s - WARM_UP_S) for one in arrivals if one.at_s >= WARM_UP_S]
    with _beside(service.hostile, attack):
        async with AsyncExitStack() as stack:
            edges = await stack.enter_async_context(Edges(service.honest, HONEST.edges))
            await edges.send([one for one in arrivals if one.at_s < WARM_UP_S])
            await asyncio.sleep(ready_s - asyncio.get_running_loop().time())
            edges = Edges(service.honest, HONEST.edges)
            try:
                async with asyncio.timeout(CONNECTED_S):
                    await stack.enter_async_context(edges)
            except TimeoutError:
                return 0.0
            rois = (await edges.send(counted)).rois
    return sum(not one.error for one in rois) / max(1, len(rois))


@contextmanager
def _beside(address: str, attack: str | None) -> Iterator[None]:
    """Let a process attack for the time of the context; all of it is on within `WARM_UP_S`."""
    if attack is None:
        yield
        return
    command = ["nice", "-n", "10", sys.executable, "-m", __spec__.name, attack, address]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        client = Process("a hostile client", command, log)
        try:
            client.wait_until(lambda: b"attacks" in log.read_bytes(), "attack", LONG_S)
            yield
            client.require_alive()
        finally:
            client.kill()


async def _capacity(service: Target) -> float:
    async with Edges(service.honest, 16) as edges:
        outcomes = await edges.saturate(4, SPAN_S, budget_s=60.0, at_once=16)
    return len(outcomes.in_time) / outcomes.span_s


async def freed_s(service: Target, hold: Study) -> float:
    """Hold places; return how long after the last deadline the last one was free."""
    async with _channels(service.hostile, 8) as stubs:
        calls = [asyncio.ensure_future(hold(stubs[i % 8], HELD_BUDGET_S)) for i in range(HELD)]
        opened_s, most = time.monotonic(), 0.0
        try:
            while True:
                await asyncio.sleep(0.02)
                values = await asyncio.to_thread(service.cloud.samples)
                places, now_s = values["overread_cloud_open_streams"], time.monotonic()
                if places > most:
                    opened_s, most = now_s, places
                if most and not places:
                    return now_s - opened_s - HELD_BUDGET_S
                if now_s - opened_s > 60.0:
                    return 60.0
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


def measure(service: Target) -> dict[str, Any]:
    """Measure all attacks in turn; return the figures."""
    process = service.cloud.process
    assert process is not None
    idle_mb = resident_mb(process.pid)
    with peak_memory(process.pid) as peak:
        capacity = asyncio.run(_capacity(service))
        alone: list[float] = []
        beside: dict[str, list[float]] = {name: [] for name in ATTACKS}
        for turn, name in each([(i, name) for i in range(ROUNDS) for name in ATTACKS], "attacks"):
            honest = poisson(HONEST, ASKED * capacity, WARM_UP_S + SPAN_S, seed=turn)
            alone.append(asyncio.run(answered(service, honest, None)))
            beside[name].append(asyncio.run(answered(service, honest, name)))
            time.sleep(2.0)
        now_and_then = [
            Arrival(WARM_UP_S + number * PAUSE_S, 0, 4, QUIET_BUDGET_S)
            for number in range(3 * ROUNDS)
        ]
        quiet = asyncio.run(answered(service, now_and_then, next(iter(ATTACKS))))
        freed = {
            name: max(asyncio.run(freed_s(service, hold)) for _ in range(ROUNDS))
            for name, hold in each(list(HOLDS.items()), "held places")
        }
    base = float(np.mean(alone))
    return {
        "rounds": ROUNDS,
        "seconds": SPAN_S,
        "capacity_per_s": capacity,
        "asked": ASKED,
        "in_time_alone": base,
        "attacks": [
            {"attack": name, "kept": float(np.mean(found)) / base, "freed_s": freed.get(name)}
            for name, found in beside.items()
        ],
        "quiet_in_time": quiet,
        "rate_bar": RATE_BAR,
        "freed_bar_s": FREE_BAR_S,
        "memory_mb": peak.own_mb,
        "memory_idle_mb": idle_mb,
        "memory_bar_mb": MEMORY_BAR_MB,
    }


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of rates, places and memory."""
    rate, rows = result["rate_bar"], result["attacks"]
    kept, what = min(one["kept"] for one in rows), "beside hostile clients an honest site keeps"
    yield Bar(f"{what} of its rate", kept, rate, "{:.0%}", least=True)
    what = "of a quiet site's ROIs are answered in time while the cloud is flooded"
    yield Bar(what, result["quiet_in_time"], rate, "{:.0%}", least=True)
    freed = max(one["freed_s"] for one in rows if one["freed_s"] is not None)
    what = "places held without work are free after their deadline"
    yield Bar(what, freed, result["freed_bar_s"], "{:.2f} s")
    what = "memory of the cloud beside hostile clients"
    yield Bar(what, result["memory_mb"], result["memory_bar_mb"], "{:.0f} MB")


ATTACKS_TABLE = Table(
    "attacks",
    {
        "attack": "a hostile site sends",
        "kept": ("rate that honest callers keep", SHARE),
        "freed_s": ("places free after the deadline, s", "{:.2f}"),
    },
    title="Required: at least {rate_bar:.0%}, at most {freed_bar_s:g} s",
)


@command(ATTACKS_TABLE, bars=bars, strict=True)
def hostile_clients() -> dict[str, Any]:
    """What hostile clients of the cloud cost the honest ones: rate, places and memory."""
    served, clients = split_cores()
    asleep = "asleep {:g} ms and {:g} ms an ROI".format(*READER_MS)
    with ExitStack() as held:
        with pinned(served):
            service = held.enter_context(target())
        held.enter_context(pinned(clients))
        return {"reader": asleep, **measure(service)}


if __name__ == "__main__":
    print("attacks", flush=True)
    asyncio.run(ATTACKS[sys.argv[1]](sys.argv[2]))
