import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import pytest

from evaluation.links.proxy import (
    CHUNK_BYTES,
    Conditions,
    Proxy,
    State,
    TokenBucket,
    Trace,
    shipped_traces,
    steady,
)

LIMIT_S = 300.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Hand:
    """Time that passes at once when a coroutine sleeps."""

    now_s: float = 0.0
    sleeps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.sleeps.append(seconds)
        await asyncio.sleep(0)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(4096):
            writer.write(content)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@dataclass
class Bench:
    proxy: Proxy
    hand: Hand
    stack: AsyncExitStack

    async def connect(self) -> Streams:
        host, _, port = self.proxy.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.stack.callback(writer.close)
        return reader, writer

    async def until(self, state: State) -> None:
        """Go on to the next second of the trace, and wait until the proxy has seen it."""
        self.hand.now_s = float(int(self.hand.now_s) + 1)
        while self.proxy.state is not state:
            await asyncio.sleep(0.002)

    async def talked_until(self, state: State) -> Streams:
        """A connection that has carried bytes when that state comes."""
        streams = await self.connect()
        assert await talk(streams, b"before") == b"before"
        await self.until(state)
        return streams


def bench(trace: Trace, test: Callable[[Bench], Awaitable[None]], *, seed: int = 0) -> None:
    async def run() -> None:
        async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
            server = await asyncio.start_server(_echo, "127.0.0.1", 0)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            hand = Hand()
            proxy = Proxy(upstream, trace, seed=seed, clock=hand, sleep=hand.sleep)
            await stack.enter_async_context(proxy)
            await test(Bench(proxy, hand, stack))

    asyncio.run(run())


def on(trace: Trace) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[], None]]:
    """Make a test of a coroutine that takes a bench with that trace."""

    def decorate(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
        return lambda: bench(trace, test)

    return decorate


def states(*names: State) -> Trace:
    conditions = tuple(Conditions(state=state) for state in names)
    return Trace("states", tuple(float(i) for i in range(len(names))), conditions)


async def talk(streams: Streams, content: bytes) -> bytes:
    reader, writer = streams
    writer.write(content)
    await writer.drain()
    return await reader.readexactly(len(content))


async def is_silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes, not even an end, for a moment."""
    try:
        await asyncio.wait_for(reader.read(1), 0.1)
    except TimeoutError:
        return True
    return False


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b"never"
    except ConnectionResetError:
        return True


@on(steady(Conditions(latency_ms=20, jitter_ms=30)))
async def test_bytes_come_whole_and_in_order(it: Bench) -> None:
    contents = [random.Random(i).randbytes(1 << 20) for i in range(3)]

    async def one(content: bytes) -> bool:
        reader, writer = await it.connect()
        writer.write(content)
        writer.write_eof()
        return await reader.read() == content

    assert all(await asyncio.gather(*(one(content) for content in contents)))
    assert it.proxy.carried_bytes == {True: 3 << 20, False: 3 << 20}


@on(steady(Conditions(latency_ms=600, jitter_ms=20)))
async def test_latency_takes_a_round_trip(it: Bench) -> None:
    """Connecting and one exchange are two round trips of 600 ms; jitter adds at most its bounds."""
    streams = await it.connect()
    assert await talk(streams, b"ping") == b"ping"
    assert 1.2 <= it.hand.now_s <= 1.2 + 2 * 0.02 + 1e-6


@pytest.mark.parametrize(("up", "down", "least_s"), [(800, 0, 1.8), (0, 1600, 0.9)])
def test_bandwidth_is_limited_each_way(up: float, down: float, least_s: float) -> None:
    """200 kB take 2 s at 800 kbit/s up, 1 s at 1600 kbit/s down, less the first burst."""

    async def test(it: Bench) -> None:
        await talk(await it.connect(), bytes(200_000))
        assert least_s <= it.hand.now_s <= 2 * least_s

    bench(steady(Conditions(up_kbit=up, down_kbit=down)), test)


@on(states(State.UP, State.STALL, State.UP))
async def test_a_stall_holds_bytes_back_and_loses_none(it: Bench) -> None:
    streams = await it.talked_until(State.STALL)
    streams[1].write(b"during")
    assert await is_silent(streams[0])
    await it.until(State.UP)
    assert await streams[0].readexactly(6) == b"during"


@on(states(State.UP, State.RESET, State.UP))
async def test_a_reset_ends_connections_old_and_new(it: Bench) -> None:
    streams = await it.talked_until(State.RESET)
    assert await is_reset(streams[0])
    with suppress(ConnectionResetError):  # it may come before the connection is made
        assert await is_reset((await it.connect())[0])
    await it.until(State.UP)
    assert await talk(await it.connect(), b"after") == b"after"


@on(states(State.UP, State.HALF_OPEN, State.UP))
async def test_half_open_carries_up_and_nothing_back(it: Bench) -> None:
    streams = await it.talked_until(State.HALF_OPEN)
    streams[1].write(b"during")
    assert await is_silent(streams[0])
    assert it.proxy.carried_bytes == {True: 12, False: 6}
    await it.until(State.UP)
    assert await is_reset(streams[0])


@on(states(State.UP, State.BLACK_HOLE, State.UP))
async def test_a_black_hole_swallows_both_ways(it: Bench) -> None:
    old = await it.talked_until(State.BLACK_HOLE)
    new = await it.connect()
    for _, writer in (old, new):
        writer.write(b"during")
    assert await is_silent(old[0])
    assert await is_silent(new[0])
    assert it.proxy.carried_bytes[True] == 6
    await it.until(State.UP)
    assert await is_reset(old[0])
    assert await is_reset(new[0])


def test_a_cloud_that_does_not_listen_is_a_reset() -> None:
    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound but not listening
            upstream = f"127.0.0.1:{taken.getsockname()[1]}"
            async with asyncio.timeout(LIMIT_S), Proxy(upstream, steady(Conditions())) as proxy:
                host, _, port = proxy.address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                assert await is_reset(reader)
                writer.close()

    asyncio.run(run())


@on(steady(Conditions(state=State.STALL)))
async def test_the_loop_is_never_blocked(it: Bench) -> None:
    streams = await it.connect()
    streams[1].write(bytes(1 << 20))
    for _ in range(5000):
        await asyncio.sleep(0)
    assert it.proxy.carried_bytes[False] == 0


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    """A pause fills the bucket and no more; without a rate nothing waits."""
    bucket = TokenBucket()
    assert bucket.wait_s(CHUNK_BYTES, 800, 0.0) == 0.0
    assert bucket.wait_s(50_000, 800, 0.0) == pytest.approx(0.5)
    assert bucket.wait_s(50_000, 800, 0.25) == pytest.approx(0.75)
    assert bucket.wait_s(CHUNK_BYTES + 10_000, 800, 3600.0) == pytest.approx(0.1)
    assert bucket.wait_s(1000, 8, 3600.0) == pytest.approx(11.0)
    assert bucket.wait_s(10**9, 0, 3600.0) == 0.0


def test_the_shipped_traces_match_their_names() -> None:
    traces = {one.name: one for one in shipped_traces()}
    flaps = traces["flapping"]
    assert flaps.at(0.0) == Conditions(20, 5, 20_000, 50_000, State.UP)
    states = [flaps.at(time).state for time in (3.99, 4.0, 5.99, 6.0, 24.0, 29.0, 23.0 + 2400)]
    up, reset = State.UP, State.RESET
    assert states == [up, reset, reset, up, up, reset, State.BLACK_HOLE]
    assert traces["fibre"].at(0) == Conditions(5, 0.5, 100_000, 100_000)
    assert (traces["dsl"].at(0).down_kbit, traces["dsl"].at(0).up_kbit) == (20_000, 2_000)
    assert traces["satellite"].at(0).latency_ms == 600
    assert traces["dead"].at(9).state is State.RESET
    assert traces["black-hole"].at(1e6).state is State.BLACK_HOLE  # its last line stays
    for name, seen in (
        ("swallow", {State.UP, State.BLACK_HOLE, State.HALF_OPEN}), ("flapping", set(State))
    ):  # fmt: skip
        assert {traces[name].at(time).state for time in range(24)} == seen
