"""A TCP proxy that behaves as a link of a trace: slow, jittery, stalling, lossy, or dead.

It carries bytes in their order and unchanged, or not at all. Everything happens in one asyncio
loop, which nothing here blocks.

One direction of a link: when bytes that enter now arrive at the other end.

A token bucket says when they have left, latency and jitter how long they are under way. It knows
nothing of sockets; time is what it is told.

The fault proxy beside a program that is not asyncio: in a thread with a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from evaluation.links.trace import Conditions, State, Trace

BURST_BYTES = 16384
"""What goes out at once after a pause, whatever the rate."""


class TokenBucket:
    """The bandwidth of one direction, shared by all its connections."""

    def __init__(self, burst_bytes: int = BURST_BYTES) -> None:
        self._burst = float(burst_bytes)
        self._tokens = self._burst
        self._seen_s = float("-inf")

    def wait_s(self, count: int, kbit: float, now_s: float) -> float:
        """Seconds until ``count`` bytes that are offered now have left at ``kbit`` a second.

        They are taken from the bucket, which may go below nothing: who comes next waits longer.
        """
        if kbit <= 0:
            return 0.0
        bytes_per_s = kbit * 1000 / 8
        if self._seen_s > float("-inf"):
            self._tokens += max(0.0, now_s - self._seen_s) * bytes_per_s
        self._seen_s = now_s
        self._tokens = min(self._tokens, self._burst) - count
        return max(0.0, -self._tokens / bytes_per_s)


class Flight:
    """The way of one connection's bytes in one direction; none overtakes another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last_s = float("-inf")

    def due_s(self, left_s: float, latency_ms: float, jitter_ms: float) -> float:
        """When what left at ``left_s`` arrives, after half of the round trip ``latency_ms``."""
        way_s = (latency_ms / 2 + self._rng.uniform(0, jitter_ms)) / 1000
        self._last_s = max(self._last_s, left_s + way_s)
        return self._last_s


CHUNK_BYTES = 16384


UNDER_WAY = 256
"""Chunks of one connection and direction that may be under way; then the sender waits."""

WATCH_S = 0.01
"""How often the trace is looked at."""

_BUFFER_BYTES = 65536


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST


_ENDED, _BROKEN = "ended", "broken"

Sleep = Callable[[float], Awaitable[None]]


Under = tuple[float, bytes | str]
"""When it arrives, and what: bytes, or how the stream ended."""


@dataclass
class Carried:
    """What has crossed the link: bytes each way, and connections taken up."""

    up_bytes: int = 0
    down_bytes: int = 0
    connections: int = 0

    @property
    def total_bytes(self) -> int:
        """Both ways together."""
        return self.up_bytes + self.down_bytes


@dataclass(eq=False)
class _Pair:
    """A connection from the edge and, once it is made, the one to the cloud."""

    edge: asyncio.StreamWriter
    cloud: asyncio.StreamWriter | None = None
    lost: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Ends both at once, as a reset."""
        for task in self.tasks:
            task.cancel()
        for writer in (self.edge, self.cloud):
            if writer is not None and not writer.transport.is_closing():
                raw = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()


class Proxy:
    """Listens on loopback for the time of an ``async with``, and carries to ``upstream``.

    ``clock`` and ``sleep`` make time; the trace begins when the proxy is entered.
    """

    def __init__(
        self,
        upstream: str,
        trace: Trace,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._upstream, self._trace = upstream, trace
        self._clock, self._sleep, self._rng = clock, sleep, random.Random(seed)
        self._up, self._down = TokenBucket(), TokenBucket()
        self._pairs: set[_Pair] = set()
        self._state, self._changed = State.UP, asyncio.Event()
        self.carried, self.address = Carried(), ""

    async def __aenter__(self) -> Self:
        self._began_s = self._clock()
        self._state = self.conditions.state
        listening = socket.create_server(("127.0.0.1", 0))
        # a small window: who sends feels the bandwidth, and not megabytes of the kernel's patience
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._server = await asyncio.start_server(self._take, sock=listening)
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
        await asyncio.sleep(0)  # in which the transports take leave

    @property
    def conditions(self) -> Conditions:
        """Of the link, now."""
        return self._trace.at(self._clock() - self._began_s)

    def rewind(self) -> None:
        """Begins the trace anew."""
        self._began_s = self._clock()

    async def _watch(self) -> None:
        while True:
            before, self._state = self._state, self.conditions.state
            if self._state is not before:
                self._turn()
            await asyncio.sleep(WATCH_S)

    def _turn(self) -> None:
        """The state has changed: resets what cannot live on, and wakes who waits."""
        for pair in tuple(self._pairs):
            if pair.lost or self._state is State.RESET:
                pair.reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from the edge, to its end."""
        pair = _Pair(writer)
        task = asyncio.current_task()
        assert task is not None
        pair.tasks.append(task)
        self._pairs.add(pair)
        self.carried.connections += 1
        try:
            if self._state is not State.RESET:
                await self._carry(pair, reader)
        except (OSError, asyncio.CancelledError):
            pass  # whoever is left learns it by the reset
        finally:
            pair.tasks.remove(task)
            pair.reset()
            self._pairs.discard(pair)

    async def _carry(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        if self._state is State.BLACK_HOLE:
            await self._swallow(pair, reader)
            return
        await self._sleep(self.conditions.latency_ms / 1000)  # what the handshake takes
        host, _, port = self._upstream.rpartition(":")
        back, pair.cloud = await asyncio.open_connection(host, int(port))
        ways = [
            self._way(pair, reader, pair.cloud, up=True),
            self._way(pair, back, pair.edge, up=False),
        ]
        ended = [asyncio.create_task(way) for way in ways]
        pair.tasks += ended
        await asyncio.gather(*ended)
        for one in (pair.cloud, pair.edge):  # both streams ended as they should: no reset
            one.close()

    async def _swallow(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        """Takes and never answers, until the edge gives up, or the state is over: a reset."""
        pair.lost = True
        while await reader.read(CHUNK_BYTES):
            pass

    async def _way(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool
    ) -> None:
        """One direction of a connection, from its first byte to its end."""
        under_way: asyncio.Queue[Under] = asyncio.Queue(UNDER_WAY)
        sending = asyncio.create_task(self._send(source, under_way, up=up))
        try:
            while not await self._deliver(pair, await under_way.get(), sink, up=up):
                pass
        finally:
            sending.cancel()

    async def _send(
        self, source: asyncio.StreamReader, under_way: asyncio.Queue[Under], *, up: bool
    ) -> None:
        """Puts on the way what comes, as fast as the bandwidth lets it, and then how it ended."""
        bucket, flight = (self._up if up else self._down), Flight(self._rng)
        content: bytes | str = b""
        while isinstance(content, bytes):
            content = await _next(source)
            now = self.conditions
            if isinstance(content, bytes):
                kbit = now.up_kbit if up else now.down_kbit
                await self._sleep(bucket.wait_s(len(content), kbit, self._clock()))
            due_s = flight.due_s(self._clock(), now.latency_ms, now.jitter_ms)
            await under_way.put((due_s, content))

    async def _deliver(
        self, pair: _Pair, under: Under, sink: asyncio.StreamWriter, *, up: bool
    ) -> bool:
        """Hands on what is under way when it is due; True when the stream has ended."""
        due_s, content = under
        if (early_s := due_s - self._clock()) > 0:
            await self._sleep(early_s)
        while self._state is State.STALL:
            await self._changed.wait()
        swallowed = self._state is State.BLACK_HOLE or (self._state is State.HALF_OPEN and not up)
        if swallowed:
            pair.lost = True
            return False
        if content == _BROKEN:
            pair.reset()
        elif isinstance(content, bytes):
            await self._write(content, sink, up=up)
        elif sink.can_write_eof():
            sink.write_eof()
        return not isinstance(content, bytes)

    async def _write(self, content: bytes, sink: asyncio.StreamWriter, *, up: bool) -> None:
        sink.write(content)
        await sink.drain()
        if up:
            self.carried.up_bytes += len(content)
        else:
            self.carried.down_bytes += len(content)


async def _next(source: asyncio.StreamReader) -> bytes | str:
    """The next bytes of a stream, or how it ended."""
    try:
        return await source.read(CHUNK_BYTES) or _ENDED
    except OSError:
        return _BROKEN


class Proxied:
    """A running proxy, as another thread sees it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    @property
    def address(self) -> str:
        """``HOST:PORT`` for the edge to connect to."""
        return self._proxy.address

    @property
    def carried(self) -> Carried:
        """What has crossed the link so far."""
        return self._proxy.carried

    def rewind(self) -> None:
        """Begins the trace anew."""
        self._proxy.rewind()


@contextmanager
def proxied(upstream: str, trace: Trace, *, seed: int = 0) -> Iterator[Proxied]:
    """A proxy to ``HOST:PORT`` for the time of the context.

    Raises:
        OSError: it cannot listen.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = Proxy(upstream, trace, seed=seed)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        try:
            yield Proxied(proxy)
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
