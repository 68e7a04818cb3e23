"""``overread-eval replicas``: what a second replica adds, and what the end of one costs.

Two clouds with a reader that sleeps serve the same callers, who know both addresses and use them in
turn, as an edge does. First the capacity of one and of both, in turn. Then twice the capacity of
both. Then edges send studies while one of the two is stopped (SIGTERM), and while it is killed
(SIGKILL): no study may be late or without an answer for that, and the one that is being stopped
must not get new studies.
"""

import asyncio
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families

from edge.escalation.client import open_second_reader
from edge.link.channel import BALANCED
from edge.settings.core import load_settings
from evaluation.common.cli import Json, each, show
from evaluation.common.processes import RestartableCloud, free_ports, restartable_cloud
from evaluation.load.generator import Edges, Traffic, poisson
from imaging.volume import WINDOW_HU
from models.markdown import Rows, number, percent
from models.runtime import hardware
from process.tls import grpc_target
from protos.deadline import Deadline
from protos.messages import Roi

RATIO_BAR, GOODPUT_BAR = 1.9, 0.9
"""Required: capacity of both over that of one, and goodput of both at twice their capacity."""

SETTLED_S = 0.1
"""After this time a replica that is being stopped must get no new study."""

SHAPE = (48, 48, 48)
BUDGET_S = 5.0
ROIS = 4
SENDERS = 6


@dataclass
class Replica:
    """One of the clouds, and the URL of its metrics."""

    cloud: RestartableCloud
    metrics: str

    def samples(self) -> dict[str, float]:
        """Return its metrics, summed over labels; raise OSError if it does not answer."""
        return samples_at(self.metrics)

    def opened(self) -> float:
        """Return how many studies were opened at it."""
        samples = self.samples()
        ended = samples.get("overread_cloud_streams_total", 0.0)
        return ended + samples["overread_cloud_open_streams"]


def samples_at(metrics: str) -> dict[str, float]:
    """Return the metrics at a URL, summed over labels; raise OSError if nobody answers."""
    with urllib.request.urlopen(metrics, timeout=2) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


@dataclass(frozen=True)
class Fault:
    """What the end of one replica did to the studies that were sent meanwhile.

    ``new_after`` counts studies that it got when it was being stopped for `SETTLED_S`.
    """

    fault: str
    studies: int
    unanswered: int
    late: int
    new_after: int
    longest_s: float


def replicas_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every measurement.")] = 5,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of each.")] = 5.0,
    fixed_ms: Annotated[float, typer.Option(min=0.0, help="Simulated reader: ms a batch.")] = 2.0,
    each_ms: Annotated[float, typer.Option(min=0.0, help="Simulated reader: ms an ROI.")] = 14.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Two clouds for the same edges: capacity, overload, and a stop and a kill of one."""
    options = ("--fixed-ms", str(fixed_ms), "--each-ms", str(each_ms))
    with two_replicas(options) as pair:
        capacity = asyncio.run(_capacities(pair, rounds, seconds))
        both = float(np.median(capacity["both"]))
        goodput = asyncio.run(_overload(pair, rounds, seconds, both, seed))
        faults = [
            one_fault(pair, kind, seconds, 0.5 * both)
            for _, kind in each([(i, kind) for i in range(rounds) for kind in FAULTS], "faults")
        ]
    result = as_dict(capacity, goodput, faults)
    result |= {"cpu": hardware.cpu_name(), "cores": hardware.cores(), "rounds": rounds}
    result |= {"reader": f"asleep {fixed_ms:g} ms and {each_ms:g} ms an ROI"}
    show(result, as_json, *_tables(result))
    raise typer.Exit(0 if result["met"] else 1)


@contextmanager
def two_replicas(options: Sequence[str] = ()) -> Iterator[list[Replica]]:
    """Run two clouds with a reader that sleeps for the time of the context."""
    program = ("evaluation.load.sleeping_service", *options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-two-")))
        replicas = []
        for i, port in enumerate(free_ports(2)):
            place = folder / str(i)
            place.mkdir()
            (place / "cloud.toml").write_text(
                f'metrics_address = "127.0.0.1:{port}"\ngrace_s = 10.0\n'
            )
            cloud = restartable_cloud(place, program, "--config", str(place / "cloud.toml"))
            metrics = f"http://127.0.0.1:{port}/metrics"
            replicas.append(Replica(stack.enter_context(cloud), metrics))
        yield replicas


def address_of(replicas: Sequence[Replica]) -> str:
    """Return the address of some replicas, as a setting of the edge has it."""
    return ",".join(one.cloud.address for one in replicas)


def _edges(replicas: Sequence[Replica], edges: int) -> Edges:
    return Edges(grpc_target(address_of(replicas)), SHAPE, edges, BALANCED)


async def _capacities(
    pair: Sequence[Replica], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measure the ROIs a second of one replica and of both, in turn."""
    found: dict[str, list[float]] = {"one": [], "both": []}
    for _ in each(range(rounds), "capacity"):
        for name, some in (("one", pair[:1]), ("both", pair)):
            async with _edges(some, 16) as edges:
                outcomes = await edges.saturate(ROIS, seconds, budget_s=60.0, at_once=32)
            found[name].append(len(outcomes.in_time) / outcomes.span_s)
    return found


async def _overload(
    pair: Sequence[Replica], rounds: int, seconds: float, capacity: float, seed: int
) -> list[float]:
    """Send twice the capacity of both; return the goodput of each round as a share of it."""
    found = []
    for turn in each(range(rounds), "twice the capacity"):
        arrivals = poisson(Traffic(), 2 * capacity, seconds, seed + turn)
        async with _edges(pair, Traffic().edges) as edges:
            outcomes = await edges.send(arrivals)
        in_time = sum(one.at_s <= seconds for one in outcomes.in_time)
        found.append(in_time / seconds / capacity)
        await asyncio.sleep(1.0)
    return found


def one_fault(pair: Sequence[Replica], kind: str, seconds: float, rois_per_s: float) -> Fault:
    """Let edges send studies at a rate that one replica carries, and end the first meanwhile."""
    victim, stop = pair[0], threading.Event()
    pause_s = SENDERS * ROIS / rois_per_s
    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [
            pool.submit(send_studies, address_of(pair), pause_s, stop) for _ in range(SENDERS)
        ]
        time.sleep(seconds / 3)
        new_after = FAULTS[kind](victim)
        time.sleep(seconds / 3)
        victim.cloud.start()
        victim.cloud.wait()
        time.sleep(seconds / 3)
        stop.set()
        studies = [study for sender in senders for study in sender.result()]
    return Fault(
        kind,
        studies=len(studies),
        unanswered=sum(answered < ROIS for answered, _ in studies),
        late=sum(took_s > BUDGET_S for _, took_s in studies),
        new_after=new_after,
        longest_s=max((took_s for _, took_s in studies), default=0.0),
    )


def send_studies(address: str, pause_s: float, stop: threading.Event) -> list[tuple[int, float]]:
    """Send studies as an edge does until ``stop``; return verdicts and seconds of each."""
    rng = np.random.default_rng()
    voxels = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    rois = [Roi(i, voxels, (1.0, 1.0, 1.0), WINDOW_HU, 0.5) for i in range(ROIS)]
    found = []
    with ExitStack() as held:
        second = open_second_reader(load_settings(cloud__address=address), held, time.monotonic)
        while not stop.wait(rng.exponential(pause_s)):
            began_s = time.monotonic()
            answers = second.read_rois(rois, Deadline.after(BUDGET_S), uuid.uuid4().hex)
            found.append((len(answers.verdicts), time.monotonic() - began_s))
    return found


def _stop(victim: Replica) -> int:
    """Stop it by SIGTERM; return how many studies it got after `SETTLED_S`."""
    began_s, counts = time.monotonic(), list[float]()
    stopping = threading.Thread(target=victim.cloud.stop)
    stopping.start()
    while stopping.is_alive():
        with suppress(OSError, KeyError):  # it has ended
            opened = victim.opened()
            if time.monotonic() - began_s >= SETTLED_S:
                counts.append(opened)
        time.sleep(0.02)
    stopping.join()
    return int(counts[-1] - counts[0]) if counts else 0


def _kill(victim: Replica) -> int:
    victim.cloud.kill()
    return 0


FAULTS: dict[str, Callable[[Replica], int]] = {"SIGTERM": _stop, "SIGKILL": _kill}
"""How one replica ends; each returns the studies that it got while it was being stopped."""


def as_dict(
    capacity: dict[str, list[float]], goodput: Sequence[float], faults: Sequence[Fault]
) -> dict[str, Any]:
    """Return the figures of all rounds, and whether they meet the bars."""
    ratios = np.divide(capacity["both"], capacity["one"])
    result: dict[str, Any] = {
        "capacity_per_s": {name: float(np.median(found)) for name, found in capacity.items()},
        "ratio": float(np.median(ratios)),
        "ratio_by_round": [float(one) for one in ratios],
        "ratio_bar": RATIO_BAR,
        "goodput_of_capacity": float(np.median(goodput)),
        "goodput_by_round": [float(one) for one in goodput],
        "goodput_bar": GOODPUT_BAR,
        "faults": [
            {
                "fault": kind,
                "times": len(those),
                **{
                    name: sum(getattr(one, name) for one in those)
                    for name in ("studies", "unanswered", "late", "new_after")
                },
                "longest_s": max(one.longest_s for one in those),
            }
            for kind in FAULTS
            if (those := [one for one in faults if one.fault == kind])
        ],
    }
    sound = all(
        not one[name] for one in result["faults"] for name in ("unanswered", "late", "new_after")
    )
    met = result["ratio"] >= RATIO_BAR and result["goodput_of_capacity"] >= GOODPUT_BAR
    return {**result, "met": bool(met and sound)}


def _tables(result: dict[str, Any]) -> Iterator[Rows]:
    one, both = (result["capacity_per_s"][name] for name in ("one", "both"))
    rows = [
        ["ROIs a second, one replica", "", f"{one:.1f}"],
        ["both", f"{RATIO_BAR} times", f"{both:.1f}, {result['ratio']:.2f} times"],
        [
            "goodput at twice the capacity of both",
            percent(GOODPUT_BAR, 0),
            percent(result["goodput_of_capacity"]),
        ],
    ]
    where = f"{result['reader']}; {result['rounds']} rounds; {result['cpu']}"
    yield Rows(["what", "at least", "measured"], rows, where)
    heads = ["one replica ends by", "times", "studies", "unanswered", "late", "new after 0.1 s",
             "longest s"]  # fmt: skip
    cells = [
        [one["fault"], *(str(one[key]) for key in
         ("times", "studies", "unanswered", "late", "new_after")), number(one["longest_s"], 2)]
        for one in result["faults"]
    ]  # fmt: skip
    yield Rows(heads, cells, "Required: none unanswered, late, or new at a replica that stops")
