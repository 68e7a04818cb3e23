"""A TCP proxy that behaves as a link of a trace: slow, jittery, stalling, lossy, or dead.

A trace is a CSV file. Each line holds from its time until the next: ``time`` in seconds,
``latency_ms`` (round trip, half of it each way), ``jitter_ms`` (largest additional delay each
way), ``up_kbit`` and ``down_kbit`` a second (edge to cloud and back; 0 is without limit), and
``state``. A last line of state ``repeat`` restarts the trace; without it the last line holds to
the end. The shipped traces in ``evaluation/links/traces`` are made up, not recorded.

Bytes are carried in their order and unchanged, or not at all. A token bucket gives the time at
which bytes have left, latency and jitter the time of their flight. All happens in one asyncio loop,
which nothing here blocks; `proxied` runs that loop in a thread beside a blocking program.
"""

import asyncio
import contextlib
import csv
import itertools
import random
import socket
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self

SHIPPED = Path(__file__).resolve().parent / "traces"

CHUNK_BYTES = 16384
"""Read at once; as many leave at once after a pause, whatever the rate."""
IN_FLIGHT = 256
"""Chunks of one connection and direction that may be in flight; then the sender waits."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST
_ENDED, _BROKEN = "ended", "broken"

Sleep = Callable[[float], Awaitable[None]]
InFlight = tuple[float, bytes | str]
"""Time of arrival, and content: bytes, or how the stream ended."""

Tap = Callable[[int, bool, bytes], None]
"""Called with the number of the connection, whether to the cloud, and the bytes delivered."""


class State(Enum):
    """The effect on connections and bytes.

    ``UP`` carries them. ``STALL`` holds bytes back until it ends. ``RESET`` resets every
    connection; a new one is accepted and reset at once, as by a load balancer without a server.
    ``HALF_OPEN`` carries bytes to the cloud and none back. ``BLACK_HOLE`` accepts connections and
    swallows bytes both ways. A connection that has lost bytes is reset when the state ends.
    """

    UP = "up"
    STALL = "stall"
    RESET = "reset"
    HALF_OPEN = "half-open"
    BLACK_HOLE = "black-hole"


@dataclass(frozen=True)
class Conditions:
    """A link at one moment; units as in the file."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    up_kbit: float = 0.0
    down_kbit: float = 0.0
    state: State = State.UP


@dataclass(frozen=True)
class Trace:
    """Conditions by the time from which they hold; ``repeat_s`` is 0 if the last ones stay."""

    name: str
    times_s: tuple[float, ...]
    conditions: tuple[Conditions, ...]
    repeat_s: float = 0.0

    def at(self, time_s: float) -> Conditions:
        """Return the conditions ``time_s`` seconds after the trace began."""
        within = time_s % self.repeat_s if self.repeat_s else time_s
        return self.conditions[max(0, bisect_right(self.times_s, within) - 1)]


def steady(conditions: Conditions, name: str = "steady") -> Trace:
    """Return a trace that never changes."""
    return Trace(name, (0.0,), (conditions,))


def shipped_traces() -> list[Trace]:
    """Return all shipped traces, by name."""
    return [read_trace(path.stem) for path in sorted(SHIPPED.glob("*.csv"))]


def read_trace(name: str) -> Trace:
    """Return the shipped trace of that name."""
    with (SHIPPED / f"{name}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    repeat_s = float(lines.pop()["time"]) if lines[-1]["state"] == "repeat" else 0.0
    keys = ("latency_ms", "jitter_ms", "up_kbit", "down_kbit")
    conditions = tuple(
        Conditions(**{key: float(line[key]) for key in keys}, state=State(line["state"]))
        for line in lines
    )
    return Trace(name, tuple(float(line["time"]) for line in lines), conditions, repeat_s)


class TokenBucket:
    """The bandwidth of one direction, shared by all its connections."""

    def __init__(self, burst_bytes: int = CHUNK_BYTES) -> None:
        self._burst = self._tokens = float(burst_bytes)
        self._seen_s = float("-inf")

    def wait_s(self, count: int, kbit: float, now_s: float) -> float:
        """Take ``count`` bytes from the bucket; the seconds until they have left at ``kbit``/s.

        The bucket may go below zero: the next bytes wait longer. A rate of 0 is without limit.
        """
        if kbit <= 0:
            return 0.0
        bytes_per_s = kbit * 1000 / 8
        if self._seen_s > float("-inf"):
            self._tokens += max(0.0, now_s - self._seen_s) * bytes_per_s
        self._seen_s = now_s
        self._tokens = min(self._tokens, self._burst) - count
        return max(0.0, -self._tokens / bytes_per_s)


@dataclass(eq=False)
class _Pair:
    """A connection from the edge and, once it is made, the one to the cloud."""

    edge: asyncio.StreamWriter
    number: int
    cloud: asyncio.StreamWriter | None = None
    lost: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for task in self.tasks:
            task.cancel()
        for writer in (self.edge, self.cloud):
            if writer is not None and not writer.transport.is_closing():
                raw = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()


class Proxy:
    """Listens on loopback for the time of an ``async with``, and connects to ``upstream``.

    The trace begins when the proxy is entered. ``tap`` gets all bytes that are delivered, which
    ``carried_bytes`` counts to the cloud (``True``) and back. ``clock`` and ``sleep`` are injected
    by tests.
    """

    def __init__(
        self,
        upstream: str,
        trace: Trace,
        *,
        seed: int = 0,
        tap: Tap = lambda _number, _up, _data: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._upstream, self._trace, self._tap = upstream, trace, tap
        self._clock, self._sleep, self._rng = clock, sleep, random.Random(seed)
        self._up, self._down = TokenBucket(), TokenBucket()
        self._pairs: set[_Pair] = set()
        self.state, self._changed = State.UP, asyncio.Event()
        self.carried_bytes, self.address = {True: 0, False: 0}, ""
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        self.rewind()
        self.state = self.conditions.state
        listening = socket.create_server(("127.0.0.1", 0))
        # a small window, so that senders feel the bandwidth instead of the kernel's buffers
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._server = await asyncio.start_server(self._accept, sock=listening)
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        self._server.close()
        tasks = [task for pair in self._pairs for task in pair.tasks]
        for pair in tuple(self._pairs):
            pair.reset()
        await asyncio.gather(self._watcher, *tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # lets the transports close

    @property
    def conditions(self) -> Conditions:
        """Return the conditions of the link now."""
        return self._trace.at(self._clock() - self._began_s)

    def rewind(self) -> None:
        """Restart the trace."""
        self._began_s = self._clock()

    async def _watch(self) -> None:
        """Reset the connections that each new state ends, and wake stalled ones."""
        while True:
            before, self.state = self.state, self.conditions.state
            if self.state is not before:
                for pair in tuple(self._pairs):
                    if pair.lost or self.state is State.RESET:
                        pair.reset()
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer, next(self._numbers))
        task = asyncio.current_task()
        assert task is not None
        pair.tasks.append(task)
        self._pairs.add(pair)
        try:
            if self.state is not State.RESET:
                await self._carry(pair, reader)
        except (OSError, asyncio.CancelledError):
            pass  # the reset below tells the other side
        finally:
            pair.tasks.remove(task)
            pair.reset()
            self._pairs.discard(pair)

    async def _carry(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        if self.state is State.BLACK_HOLE:
            pair.lost = True
            while await reader.read(CHUNK_BYTES):
                pass  # until the edge gives up, or the state changes and resets the connection
            return
        await self._sleep(self.conditions.latency_ms / 1000)  # the time of the handshake
        host, _, port = self._upstream.rpartition(":")
        back, pair.cloud = await asyncio.open_connection(host, int(port))
        ways = [
            asyncio.create_task(self._way(pair, reader, pair.cloud, up=True)),
            asyncio.create_task(self._way(pair, back, pair.edge, up=False)),
        ]
        pair.tasks += ways
        await asyncio.gather(*ways)
        for one in (pair.cloud, pair.edge):  # both streams ended normally: no reset
            one.close()

    async def _way(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool
    ) -> None:
        in_flight: asyncio.Queue[InFlight] = asyncio.Queue(IN_FLIGHT)
        sending = asyncio.create_task(self._send(source, in_flight, up=up))
        try:
            while not await self._deliver(pair, await in_flight.get(), sink, up=up):
                pass
        finally:
            sending.cancel()

    async def _send(
        self, source: asyncio.StreamReader, in_flight: asyncio.Queue[InFlight], *, up: bool
    ) -> None:
        """Send what comes at the rate of the bandwidth, and then how the stream ended."""
        bucket, last_s = (self._up if up else self._down), float("-inf")
        content: bytes | str = b""
        while isinstance(content, bytes):
            content = await _next(source)
            now = self.conditions
            if isinstance(content, bytes):
                kbit = now.up_kbit if up else now.down_kbit
                await self._sleep(bucket.wait_s(len(content), kbit, self._clock()))
            # half a round trip, and none overtakes another
            flight_s = (now.latency_ms / 2 + self._rng.uniform(0, now.jitter_ms)) / 1000
            last_s = max(last_s, self._clock() + flight_s)
            await in_flight.put((last_s, content))

    async def _deliver(
        self, pair: _Pair, chunk: InFlight, sink: asyncio.StreamWriter, *, up: bool
    ) -> bool:
        """Deliver one chunk when it is due; True when the stream has ended."""
        due_s, content = chunk
        if (early_s := due_s - self._clock()) > 0:
            await self._sleep(early_s)
        while self.state is State.STALL:
            await self._changed.wait()
        if self.state is State.BLACK_HOLE or (self.state is State.HALF_OPEN and not up):
            pair.lost = True
            return False
        if content == _BROKEN:
            pair.reset()
        elif isinstance(content, bytes):
            self._tap(pair.number, up, content)
            sink.write(content)
            await sink.drain()
            self.carried_bytes[up] += len(content)
        elif sink.can_write_eof():
            sink.write_eof()
        return not isinstance(content, bytes)


async def _next(source: asyncio.StreamReader) -> bytes | str:
    try:
        return await source.read(CHUNK_BYTES) or _ENDED
    except OSError:
        return _BROKEN


@contextmanager
def proxied(
    upstream: str, trace: Trace, *, seed: int = 0, tap: Tap = lambda _number, _up, _data: None
) -> Iterator[Proxy]:
    """Run a proxy to ``HOST:PORT`` in a thread for the time of the context.

    ``tap`` gets all bytes that are delivered, in that thread. Other threads may use its
    `Proxy.address`, `Proxy.carried_bytes` and `Proxy.rewind`.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = Proxy(upstream, trace, seed=seed, tap=tap)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
