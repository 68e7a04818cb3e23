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

from evaluation.errors import ServiceFailed
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


ROIS = tuple(map(encoded, range(64)))


@dataclass(frozen=True)
class Study:
    """A hostile study: the header announces ``rois``, ``sent`` of them follow, then silence.

    One of a ``new_site`` has a name that no other has. Answers that are not ``read`` are left.
    """

    budget_s: float = LONG_S
    rois: int = 64
    sent: int = 0
    silent_s: float = 0.0
    priority: Priority = Priority.ROUTINE
    key: str = ""
    new_site: bool = False
    read: bool = True

    async def send(self, stub: Any) -> None:
        """Send it over a connection, and read all answers."""

        async def requests() -> AsyncIterator[pb.ReadRequest]:
            key = self.key or uuid.uuid4().hex
            yield codec.encode_header(Header(key, "", self.budget_s, self.rois, self.priority))
            for roi in ROIS[: self.sent]:
                yield roi
            await asyncio.sleep(self.silent_s)

        metadata = ((SITE_KEY, f"site-{uuid.uuid4().hex}"),) if self.new_site else ()
        call = stub.Read(requests(), timeout=LONG_S, metadata=metadata)
        if not self.read:
            await asyncio.sleep(LONG_S)
        async for _ in call:
            pass


@asynccontextmanager
async def _channels(address: str) -> AsyncIterator[list[Any]]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(address, options) for _ in range(8)]
        yield [OverreadStub(await stack.enter_async_context(one)) for one in opened]


def flood(study: Study, first: Study | None = None) -> Attack:
    """Return the attack of `CALLERS` that send a study again and again, after a ``first``."""

    async def attack(address: str) -> None:
        async def caller(stub: Any) -> None:
            while True:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await study.send(stub)
                await asyncio.sleep(0.005)

        async with _channels(address) as stubs:
            if first is not None:
                await first.send(stubs[0])
            await asyncio.gather(*(caller(stubs[number % 8]) for number in range(CALLERS)))

    return attack


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 sends first (RFC 9113, section 3.4)."""
DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE = 0, 1, 3, 4, 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, stream: int = 0, content: bytes = b"", flags: int = 0) -> bytes:
    """Return a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(content).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + content


def field(name: str, value: str) -> bytes:
    """Return a header field as it is, without compression (RFC 7541, section 6.2.2)."""
    texts = name.encode(), value.encode()
    return b"\0" + b"".join(bytes((len(text),)) + text for text in texts)


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    """Open calls over a connection, and send half of each message."""
    part = (b"\0" + (110_000).to_bytes(4)).ljust(16_384, b"\1")
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "cloud",
              "te": "trailers", "content-type": "application/grpc"}  # fmt: skip
    head = b"".join(field(*pair) for pair in fields.items())
    writer.write(PREFACE + frame(SETTINGS))
    number, allowed, opened, due = 1, 65_535, set[int](), list[int]()
    while True:
        while len(opened) < UNFINISHED:  # others in place of those that were ended
            writer.write(frame(HEADERS, number, head, END_HEADERS))
            opened.add(number)
            due += [number] * PARTS
            number += 2
        while due and allowed >= len(part):
            writer.write(frame(DATA, due.pop(0), part))
            allowed -= len(part)
        start = await reader.readexactly(9)
        kind, flags, stream = start[3], start[4], int.from_bytes(start[5:])
        content = await reader.readexactly(int.from_bytes(start[:3]))
        if kind == WINDOW_UPDATE:
            allowed += 0 if stream else int.from_bytes(content)
        elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            opened.discard(stream)
            due = [other for other in due if other != stream]
            await asyncio.sleep(0.05)


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes) -> None:
    """Say little or nothing over a connection."""
    for byte in said:
        writer.write(bytes((byte,)))
        await asyncio.sleep(0.5)
    await reader.read()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def connections(count: int, talk: Talk) -> Attack:
    """Return the attack of ``count`` connections, each opened again when it is closed."""

    async def attack(address: str) -> None:
        host, port = address.rsplit(":", 1)

        async def again() -> None:
            while True:
                with suppress(OSError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                    try:
                        await talk(reader, writer)
                    finally:
                        writer.close()
                await asyncio.sleep(0.2)

        await asyncio.gather(*(again() for _ in range(count)))

    return attack


HOLDS = {
    "one ROI, then silence": Study(sent=1, silent_s=LONG_S),
    "answers that are not read": Study(sent=64, read=False),
}
"""Studies that hold places without work."""
ATTACKS: dict[str, Attack] = {
    "a new site name for each study, all stat": flood(
        Study(2.0, rois=4, sent=4, priority=Priority.STAT, new_site=True)
    ),
    "headers without ROIs": flood(Study(2.0)),
    **{name: flood(study) for name, study in HOLDS.items()},
    "messages without an end": connections(CONNECTIONS, partial(_hold, path=READ)),
    "unary messages without an end": connections(CONNECTIONS, partial(_hold, path=CHECK)),
    "silent connections": connections(SILENT, partial(_say, said=b"")),
    "slow handshakes": connections(SILENT, partial(_say, said=PREFACE)),
    "headers with a filled cache key": flood(
        Study(2.0, key="filled"), Study(60.0, sent=64, key="filled")
    ),
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


async def freed_s(service: Target, study: Study) -> float:
    """Hold places by studies; return how long after the last deadline the last one was free."""
    hold = replace(study, budget_s=HELD_BUDGET_S)
    async with _channels(service.hostile) as stubs:
        calls = [asyncio.ensure_future(hold.send(stubs[i % 8])) for i in range(HELD)]
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


@command(
    Table("attacks", {
        "attack": "a hostile site sends", "kept": ("rate that honest callers keep", SHARE),
        "freed_s": ("places free after the deadline, s", "{:.2f}"),
    }, title="Required: at least {rate_bar:.0%}, at most {freed_bar_s:g} s"),
    bars=bars, strict=True,
)  # fmt: skip
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
