"""``overread-eval hostile-clients``: what clients that mean no good cost the honest ones.

One honest and one hostile site use the same cloud, whose reader sleeps; they differ by their
address, 127.0.0.1 and ::1. The honest one sends at less than its fair share, alone and beside each
attack in turn, A B A B; the attack begins while it sends. It must keep nine tenths of its rate. So
must a quiet site, which sends a study now and then while the cloud is flooded. Then studies that
hold their places without work must have left them a second after their deadline. The cloud's memory
is sampled throughout.
"""

import asyncio
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import grpc
import numpy as np
import typer
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

from evaluation.common.cli import CloudModel, Json, each, show
from evaluation.common.processes import CLOUD, Process, free_ports, running
from evaluation.errors import ServiceFailed
from evaluation.links.http2 import PREFACE
from evaluation.load.generator import Arrival, Edges, Traffic, poisson
from evaluation.load.load import pinned, split_cores
from evaluation.load.replicas import samples_at
from evaluation.receiving.real_agent import resident_mb
from imaging.volume import WINDOW_HU
from models.markdown import Rows, percent
from models.runtime import hardware
from protos import codec
from protos import overread_pb2 as pb
from protos.messages import Header, Priority, Roi
from protos.metadata import SITE_KEY
from protos.overread_pb2_grpc import OverreadStub

if TYPE_CHECKING:
    from protos.overread_pb2_grpc import OverreadAsyncStub

SHARE = 0.25
"""Part of the capacity that the honest site asks for: its fair share beside another is a half."""
WARM_UP_S = 3.0
"""The honest site sends for so long before the attack is on and its ROIs count."""
PAUSE_S, QUIET_BUDGET_S = 3.0, 1.0
"""A quiet site sends a study each 3 s, so that it is not active between two; their budget."""
RATE_BAR, FREE_BAR_S, MEMORY_BAR_MB = 0.9, 1.0, 400.0
CALLERS = 48
"""Studies that a hostile client keeps open at once."""
HELD, HELD_BUDGET_S = 150, 3.0
"""Studies that hold places without work, and their budget."""
CONNECTIONS, UNFINISHED = 40, 64
"""Connections, and the unfinished messages of each."""
SHAPE = (48, 48, 48)
START_S = 120.0

Attack = Callable[[str], Coroutine[Any, Any, None]]
"""Attacks the service at an address until it is cancelled."""


@dataclass(frozen=True)
class Cloud:
    """The service: the addresses of the two sites, its process, and its metrics."""

    honest: str
    hostile: str
    process: Process
    metrics: str


@contextmanager
def cloud(model: str | None, options: tuple[str, ...]) -> Iterator[Cloud]:
    """Run a cloud that both sites reach, with a reader that sleeps or with a model.

    Raises:
        ServiceFailed: it did not start, or this machine has no IPv6.
    """
    if not has_ipv6():
        raise ServiceFailed("loopback has no IPv6, which tells the two sites apart: enable it")
    (port,) = free_ports(1)
    program = CLOUD if model else ("evaluation.load.sleeping_service", *options)
    with tempfile.TemporaryDirectory(prefix="overread-hostile-") as work:
        folder = Path(work)
        config, ready = folder / "cloud.toml", folder / "address"
        config.write_text(
            f'metrics_address = "127.0.0.1:{port}"\ninsecure = true\nstat_sites = ["127.0.0.1"]\n'
        )
        command = [sys.executable, "-m", *program, "--config", str(config)]
        command += ["--address", "[::]:0", "--ready-file", str(ready)]
        command += ["--model", model] if model else []
        with running("the cloud", command, folder / "log") as process:
            process.wait_until(ready.is_file, "serve", START_S)
            bound = ready.read_text().rpartition(":")[2]
            metrics = f"http://127.0.0.1:{port}/metrics"
            yield Cloud(f"127.0.0.1:{bound}", f"[::1]:{bound}", process, metrics)


def has_ipv6() -> bool:
    """Return whether loopback has IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def _roi(number: int = 0) -> pb.ReadRequest:
    voxels = np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)
    return codec.encode_roi(Roi(number, voxels, (1.0, 1.0, 1.0), WINDOW_HU, 0.5))


ROIS = tuple(map(_roi, range(4)))


def _header(rois: int, budget_s: float, priority: Priority = Priority.ROUTINE) -> pb.ReadRequest:
    return codec.encode_header(Header(uuid.uuid4().hex, "", budget_s, rois, priority))


@asynccontextmanager
async def _channels(address: str, count: int) -> AsyncIterator[list["OverreadAsyncStub"]]:
    """Open connections that share nothing."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(address, options) for _ in range(count)]
        yield [OverreadStub(await stack.enter_async_context(one)) for one in opened]


async def _forever(address: str, study: Callable[["OverreadAsyncStub"], Any]) -> None:
    """Keep `CALLERS` studies open."""

    async def caller(stub: "OverreadAsyncStub") -> None:
        while True:
            with suppress(grpc.aio.AioRpcError):
                await study(stub)
            await asyncio.sleep(0.005)

    async with _channels(address, 8) as stubs:
        await asyncio.gather(*(caller(stubs[i % 8]) for i in range(CALLERS)))


async def _new_names(address: str) -> None:
    """Stat studies, each of which names another site."""

    async def study(stub: "OverreadAsyncStub") -> None:
        async def requests() -> AsyncIterator[pb.ReadRequest]:
            yield _header(4, 2.0, Priority.STAT)
            for roi in ROIS:
                yield roi

        metadata = ((SITE_KEY, f"site-{uuid.uuid4().hex}"),)
        async for _ in stub.Read(requests(), timeout=2.0, metadata=metadata):
            pass

    await _forever(address, study)


async def _headers_only(address: str) -> None:
    """Studies that announce ROIs, and end."""

    async def study(stub: "OverreadAsyncStub") -> None:
        async def requests() -> AsyncIterator[pb.ReadRequest]:
            yield _header(64, 2.0)

        async for _ in stub.Read(requests(), timeout=2.0):
            pass

    await _forever(address, study)


async def _silent(stub: "OverreadAsyncStub", budget_s: float) -> None:
    """One ROI of many that were announced, and then nothing."""

    async def requests() -> AsyncIterator[pb.ReadRequest]:
        yield _header(64, budget_s)
        yield ROIS[0]
        await asyncio.sleep(3600)

    async for _ in stub.Read(requests(), timeout=600.0):
        pass


async def _unread(stub: "OverreadAsyncStub", budget_s: float) -> None:
    """ROIs whose answers are not read."""
    call: Any = cast(Any, stub).Read(timeout=600.0)
    await call.write(_header(64, budget_s))
    for number in range(64):
        await call.write(ROIS[number % len(ROIS)])
    await asyncio.sleep(3600)


async def _silence(address: str) -> None:
    async with _channels(address, 8) as stubs:
        await _forever_held(stubs, _silent)


async def _reads_nothing(address: str) -> None:
    async with _channels(address, 8) as stubs:
        await _forever_held(stubs, _unread)


async def _forever_held(stubs: list["OverreadAsyncStub"], hold: Callable[..., Any]) -> None:
    async def caller(number: int) -> None:
        while True:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await hold(stubs[number % len(stubs)], 600.0)
            await asyncio.sleep(0.05)

    await asyncio.gather(*map(caller, range(CALLERS)))


async def _unfinished(address: str) -> None:
    """Messages that are sent to all but their last byte."""
    with _half_messages(address):
        await asyncio.sleep(3600)


@contextmanager
def _half_messages(address: str) -> Iterator[None]:
    message = ROIS[0].SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message[:-1]
    sockets = []
    host, port = address.rsplit(":", 1)
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", "/overread.v1.Overread/Read"),
        (":authority", address), ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    try:
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((host.strip("[]"), int(port)))
            connection.setblocking(False)
            sockets.append(connection)
            frames: list[Frame] = [SettingsFrame(0)]
            encoder = Encoder()
            for stream in range(1, 2 * UNFINISHED, 2):
                frames.append(HeadersFrame(stream, encoder.encode(fields), flags=["END_HEADERS"]))
                # as much as the peer takes before it must allow more
                frames.append(DataFrame(stream, body[: 65_535 // UNFINISHED]))
            with suppress(BlockingIOError, ConnectionError):
                connection.send(PREFACE + b"".join(one.serialize() for one in frames))
        yield
    finally:
        for one in sockets:
            one.close()


ATTACKS: dict[str, Attack] = {
    "a new site name for each study, all stat": _new_names,
    "headers without ROIs": _headers_only,
    "one ROI, then silence": _silence,
    "answers that are not read": _reads_nothing,
    "messages without an end": _unfinished,
}
HOLDS: dict[str, Callable[["OverreadAsyncStub", float], Coroutine[Any, Any, None]]] = {
    "one ROI, then silence": _silent,
    "answers that are not read": _unread,
}
"""Attacks that hold places without work."""


async def _honest(service: Cloud, plan: tuple[float, float, int], attack: Attack | None) -> float:
    """Send the honest studies; return the part of the ROIs that was answered in time."""
    rois_per_s, seconds, seed = plan
    traffic = Traffic(edges=4, stat_share=0.1)
    arrivals = poisson(traffic, rois_per_s, WARM_UP_S + seconds, seed)
    async with Edges(service.honest, SHAPE, traffic.edges) as edges:
        with _beside(service.hostile, attack):
            outcomes = await edges.send(arrivals)
    counted = [one for one in outcomes.rois if one.at_s - one.took_s >= WARM_UP_S]
    return sum(not one.error for one in counted) / max(1, len(counted))


async def _quiet(service: Cloud, studies: int) -> float:
    """Flood the cloud, and send a study now and then; return the part answered in time."""
    flood = next(iter(ATTACKS.values()))
    arrivals = [
        Arrival(WARM_UP_S + number * PAUSE_S, 0, 4, QUIET_BUDGET_S) for number in range(studies)
    ]
    async with Edges(service.honest, SHAPE, 1) as edges:
        with _beside(service.hostile, flood):
            outcomes = await edges.send(arrivals)
    return len(outcomes.in_time) / len(outcomes.rois)


@contextmanager
def _beside(address: str, attack: Attack | None) -> Iterator[None]:
    """Let a process attack for the time of the context; it begins within `WARM_UP_S`."""
    if attack is None:
        yield
        return
    name = next(name for name, one in ATTACKS.items() if one is attack)
    command = ["nice", "-n", "10", sys.executable, "-m", __spec__.name, name, address]
    with tempfile.TemporaryDirectory() as folder:
        client = Process("a hostile client", command, Path(folder) / "log")
        try:
            yield
            client.require_alive()
        finally:
            client.kill()


async def _capacity(service: Cloud, seconds: float) -> float:
    async with Edges(service.honest, SHAPE, 16) as edges:
        outcomes = await edges.saturate(4, seconds, budget_s=60.0, at_once=16)
    return len(outcomes.in_time) / outcomes.span_s


async def _freed_s(service: Cloud, hold: Callable[["OverreadAsyncStub", float], Any]) -> float:
    """Hold places; return how long after the last deadline the last one was free."""
    async with _channels(service.hostile, 8) as stubs:
        calls = [asyncio.ensure_future(hold(stubs[i % 8], HELD_BUDGET_S)) for i in range(HELD)]
        opened_s, most, freed_s = time.monotonic(), 0.0, 0.0
        try:
            while True:
                await asyncio.sleep(0.02)
                values = await asyncio.to_thread(samples_at, service.metrics)
                places, now_s = values["overread_cloud_open_streams"], time.monotonic()
                if places > most:
                    opened_s, most = now_s, places
                if most and not places:
                    freed_s = now_s - opened_s - HELD_BUDGET_S
                    break
                if now_s - opened_s > 60.0:
                    freed_s = 60.0
                    break
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    return freed_s


class _Memory(threading.Thread):
    """Samples the memory of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__(daemon=True)
        self._process, self.most_mb = process, 0.0
        self.first_mb = resident_mb(process.pid)
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while mb := resident_mb(self._process.pid):
            self.most_mb = max(self.most_mb, mb)
            time.sleep(0.05)


def measure(service: Cloud, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Measure all attacks in turn; return the figures and whether they meet the bars."""
    memory = _Memory(service.process)
    capacity = asyncio.run(_capacity(service, seconds))
    alone: list[float] = []
    beside: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for turn, name in each([(i, name) for i in range(rounds) for name in ATTACKS], "attacks"):
        plan = (SHARE * capacity, seconds, seed + turn)
        alone.append(asyncio.run(_honest(service, plan, None)))
        beside[name].append(asyncio.run(_honest(service, plan, ATTACKS[name])))
        time.sleep(2.0)
    quiet = asyncio.run(_quiet(service, 3 * rounds))
    freed = {
        name: max(asyncio.run(_freed_s(service, hold)) for _ in range(rounds))
        for name, hold in each(list(HOLDS.items()), "held places")
    }
    base = float(np.mean(alone))
    kept = {name: float(np.mean(found)) / base for name, found in beside.items()}
    met = min(*kept.values(), quiet) >= RATE_BAR and max(freed.values()) <= FREE_BAR_S
    return {
        "cpu": hardware.cpu_name(),
        "cores": hardware.cores(),
        "rounds": rounds,
        "seconds": seconds,
        "seed": seed,
        "capacity_per_s": capacity,
        "asked": SHARE,
        "in_time_alone": base,
        "attacks": [
            {"attack": name, "kept": kept[name], "freed_s": freed.get(name)} for name in ATTACKS
        ],
        "quiet_in_time": quiet,
        "rate_bar": RATE_BAR,
        "freed_bar_s": FREE_BAR_S,
        "memory_mb": memory.most_mb,
        "memory_idle_mb": memory.first_mb,
        "memory_bar_mb": MEMORY_BAR_MB,
        "met": met and memory.most_mb < MEMORY_BAR_MB,
    }


def hostile_clients_command(
    model: CloudModel = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every measurement.")] = 3,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of each.")] = 5.0,
    fixed_ms: Annotated[float, typer.Option(min=0.0, help="Simulated reader: ms a batch.")] = 10.0,
    each_ms: Annotated[float, typer.Option(min=0.0, help="Simulated reader: ms an ROI.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """What hostile clients of the cloud cost the honest ones: rate, places and memory."""
    served, clients = split_cores()
    options = ("--fixed-ms", str(fixed_ms), "--each-ms", str(each_ms))
    with pinned(served):
        opened = cloud(model, options)
        service = opened.__enter__()
    try:
        with pinned(clients):
            result = measure(service, rounds, seconds, seed)
    finally:
        opened.__exit__(*sys.exc_info())
    asleep = f"asleep {fixed_ms:g} ms and {each_ms:g} ms an ROI"
    result |= {"reader": model or asleep}
    show(result, as_json, table(result), NOTE.format(**result))
    raise typer.Exit(0 if result["met"] else 1)


def table(result: dict[str, Any]) -> Rows:
    """Return what each attack did."""
    cells = [
        [one["attack"], percent(one["kept"]),
         "" if one["freed_s"] is None else f"{one['freed_s']:.2f} s"]
        for one in result["attacks"]
    ]  # fmt: skip
    title = f"Required: at least {RATE_BAR:.0%}, at most {FREE_BAR_S:g} s"
    heads = ["hostile client", "rate that honest callers keep", "places free after the deadline"]
    return Rows(heads, cells, title)


NOTE = (
    "The honest site asks for {asked:.0%} of the capacity of {capacity_per_s:.0f} ROIs a second"
    " ({reader}; {cpu}). Alone {in_time_alone:.1%} of its ROIs are answered in time. Of a quiet"
    " site's studies {quiet_in_time:.1%} are, while the cloud is flooded. Memory of the"
    " cloud: {memory_idle_mb:.0f} MB before, {memory_mb:.0f} MB at most; required: below"
    " {memory_bar_mb:.0f} MB."
)

if __name__ == "__main__":
    asyncio.run(ATTACKS[sys.argv[1]](sys.argv[2]))
