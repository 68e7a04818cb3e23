"""``overread-eval load``: goodput and wasted work of the cloud under overload.

The same Poisson arrivals are sent to four services in turn, A B C D A B C D: the cloud as it is, in
plain order of deadlines, first come, first served with full batches (both drop what is late), and
with batches of one. Services and load generator are pinned to disjoint CPU cores, so that neither
slows the other. Times count from the intended arrival, and an ROI that was not answered in time
counts as one that never came.
"""

import asyncio
import itertools
import json
import math
import os
import socket
import tempfile
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from cloud.describe import fetch_description
from evaluation.common.cli import CloudModel, Json, each, show
from evaluation.common.processes import CLOUD, cloud_service
from evaluation.load.generator import LATE, Edges, Outcome, Outcomes, Traffic, poisson
from models.markdown import Rows, number, percent
from models.runtime import hardware

ORDER = "order"
"""In a mode: a name of `evaluation.load.orders`, in place of the cloud's own order."""

MODES: Mapping[str, Mapping[str, str]] = {
    "deadline": {},
    "edf": {ORDER: "edf"},
    "fifo": {ORDER: "fifo"},
    "one at a time": {"max_batch": "1"},
}
"""The settings of the services that are compared."""

Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME", help="Device as in the setting; may be repeated."),
]
Synthetic = Annotated[
    str | None,
    typer.Option(
        metavar="FIXED,EACH", help="Simulated reader without a model: ms a batch, ms an ROI."
    ),
]

LOADS = (0.5, 1.0, 2.0)
"""Offered load, as a share of the capacity of the best mode."""


@dataclass(frozen=True)
class Service:
    """One running service: its mode, address, and URL of its metrics."""

    mode: str
    address: str
    metrics: str

    def connect(self, edges: int) -> Edges:
        """Return simulated edges of the service."""
        return Edges(self.address, fetch_description(self.address).roi_shape, edges)

    def model_time(self) -> tuple[float, float]:
        """Return the seconds of the model so far, and those of them that were wasted."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            text = answer.read().decode()
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }
        return (
            samples["overread_cloud_compute_seconds_sum"],
            samples["overread_cloud_wasted_seconds_total"],
        )


@dataclass(frozen=True)
class Run:
    """The outcomes of one mode under one load in one round, and its model's time."""

    mode: str
    load: float
    outcomes: Outcomes
    compute_s: float
    wasted_s: float


@dataclass(frozen=True)
class Plan:
    """The measurement: loads, rounds of ``span_s`` each, studies, and the first round's seed."""

    loads: Sequence[float] = LOADS
    rounds: int = 5
    span_s: float = 6.0
    traffic: Traffic = field(default_factory=Traffic)
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the loads."""
        return {
            "seed": self.seed,
            "rounds": self.rounds,
            "span_s": self.span_s,
            "edges": self.traffic.edges,
            "rois_a_study": list(self.traffic.rois),
            "budgets_s": list(self.traffic.budgets_s),
            "stat_share": self.traffic.stat_share,
        }


def load_command(
    model: CloudModel = None,
    loads: Annotated[
        str, typer.Option(metavar="X[,X]", help="Loads as multiples of the measured capacity.")
    ] = ",".join(map(str, LOADS)),
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; each service is measured once a round.")
    ] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")] = 6.0,
    edges: Annotated[int, typer.Option(min=1, help="Simulated edges.")] = 16,
    budgets: Annotated[
        str, typer.Option(metavar="S[,S]", help="Budgets of studies in seconds, equally likely.")
    ] = "0.5,1,2",
    synthetic: Synthetic = None,
    device: Devices = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model on each device.")] = 1,
    stages: Annotated[int, typer.Option(min=1, help="Parts of each copy.")] = 1,
    shared: Annotated[
        bool, typer.Option("--shared", help="Run service and edges on the same cores.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Goodput, rejections and wasted work of an overloaded cloud, compared with simpler ones."""
    traffic = Traffic(edges=edges, budgets_s=numbers_of(budgets, "--budgets"))
    plan = Plan(numbers_of(loads, "--loads"), rounds, seconds, traffic, seed)
    service, generator = split_cores(shared=shared)
    given = {"devices": json.dumps(device or []), "instances": str(instances)}
    given |= {"stages": str(stages)} if stages > 1 else {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-load-"))
        with Console(stderr=True).status("starting the services"), pinned(service):
            program = program_of(synthetic)
            started = stack.enter_context(services(Path(folder), model, program, given=given))
        stack.enter_context(pinned(generator))
        on = ran_on(started[0])
        capacity = asyncio.run(capacities(started, plan))
        runs = asyncio.run(under_load(started, plan, best_of(capacity)))
    result = {
        **on,
        "instances": instances * max(1, len(device or [])),
        "stages": stages,
        "cores": hardware.cores(),
        "service_cores": len(service),
        "pinned": not service & generator,
        "reader": reader_name(model, synthetic),
        **as_dict(plan, capacity, runs),
    }
    ratios = result["throughput_of_one_at_a_time"]
    saturated = [
        [mode, f"{rate:.1f}", f"{ratios[mode]:.2f}"]
        for mode, rate in result["capacity_per_s"].items()
    ]
    heads = ["service", "ROIs a second", "of one at a time"]
    show(result, as_json, Rows(heads, saturated, "Saturated"), _load_table(result))


def program_of(synthetic: str | None) -> Sequence[str]:
    """Return the module that serves, and its options: the cloud, or one that sleeps."""
    if synthetic is None:
        return CLOUD
    fixed, a_roi = map(str, numbers_of(synthetic, "--synthetic"))
    return "evaluation.load.sleeping_service", "--fixed-ms", fixed, "--each-ms", a_roi


def reader_name(model: str | None, synthetic: str | None) -> str:
    """Return what reads, for a result."""
    return f"asleep {synthetic} ms" if synthetic else model or "the cloud's own"


def ran_on(service: "Service") -> dict[str, str]:
    """Return the processor, the engine that the service names, and the devices in that name."""
    engine = fetch_description(service.address).engine
    devices = (one.partition(":")[2] or "cpu" for one in engine.split(" + "))
    device = ", ".join(dict.fromkeys(devices))
    return {"cpu": hardware.cpu_name(), "device": device, "engine": engine}


def split_cores(*, shared: bool = False) -> tuple[Set[int], Set[int]]:
    """Return the first half of this process's cores for the service, the rest for the generator.

    Both have all where they cannot be chosen, or if there is but one.
    """
    if not hasattr(os, "sched_getaffinity"):
        cores, shared = list(range(os.cpu_count() or 1)), True
    else:
        cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    whole = shared or not middle
    return set(cores if whole else cores[:middle]), set(cores if whole else cores[middle:])


@contextmanager
def pinned(cores: Set[int]) -> Iterator[None]:
    """Pin this thread, and all threads and processes that it starts meanwhile, to ``cores``."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def numbers_of(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of an option, ``X,X``, all finite and not negative.

    Raises:
        typer.BadParameter: they are not.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"invalid {option} {text!r}, expected numbers: X,X") from None
    if not all(math.isfinite(number) and number >= 0 for number in found):
        raise typer.BadParameter(f"invalid {option} {text!r}, expected finite numbers from 0 up")
    return found


@contextmanager
def services(
    folder: Path,
    model: str | None = None,
    program: Sequence[str] = CLOUD,
    *,
    modes: Mapping[str, Mapping[str, str]] = MODES,
    given: Mapping[str, str] | None = None,
) -> Iterator[list[Service]]:
    """Run one service for each of ``modes`` at the same time; those not under load are idle.

    All have the settings ``given``, as TOML.
    """
    with ExitStack() as stack:
        started = []
        for number, (mode, own) in enumerate(modes.items()):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            config = folder / f"{number}.toml"
            served = _ordered(program, own[ORDER]) if ORDER in own else program
            rows = {
                "metrics_address": f'"127.0.0.1:{port}"',
                "trusted_proxies": '["*"]',
                **(given or {}),
                **own,
            }
            config.write_text(
                "".join(f"{name} = {value}\n" for name, value in rows.items() if name != ORDER)
            )
            address = stack.enter_context(cloud_service(model, program=served, config=config))
            started.append(Service(mode, address, f"http://127.0.0.1:{port}/metrics"))
        yield started


def _ordered(program: Sequence[str], order: str) -> list[str]:
    """Return the program that serves with another order: with a model, or asleep as before."""
    given = ["evaluation.load.sleeping_service"] if program == CLOUD else [*program]
    return [*given, "--order", order]


async def capacities(
    started: Sequence[Service], plan: Plan, at_once: int = 16
) -> dict[str, list[float]]:
    """Measure the ROIs a second of each mode, for every round in turn.

    At each time ``at_once`` studies of 4 ROIs are open.
    """
    found = defaultdict[str, list[float]](list)
    for service in each([*started] * plan.rounds, "capacity"):
        async with service.connect(plan.traffic.edges) as edges:
            outcomes = await edges.saturate(4, plan.span_s / 2, budget_s=60.0, at_once=at_once)
        found[service.mode].append(len(outcomes.in_time) / outcomes.span_s)
    return found


def best_of(capacity: Mapping[str, Sequence[float]]) -> float:
    """Return the capacity of the best mode: the largest median over the rounds."""
    return max(float(np.median(found)) for found in capacity.values())


async def under_load(started: Sequence[Service], plan: Plan, capacity: float) -> list[Run]:
    """Send every load in every round to each mode in turn."""
    runs: list[Run] = []
    parts = list(itertools.product(range(plan.rounds), plan.loads, started))
    for turn, load, service in each(parts, "loads"):
        arrivals = poisson(plan.traffic, load * capacity, plan.span_s, plan.seed + turn)
        before = service.model_time()
        async with service.connect(plan.traffic.edges) as edges:
            outcomes = await edges.send(arrivals)
        spent_s = np.subtract(await _settled(service), before)
        runs.append(Run(service.mode, load, outcomes, *map(float, spent_s)))
    return runs


def as_dict(
    plan: Plan, capacity: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return the capacities, and the figures of each load and mode over all rounds."""
    return {
        **plan.as_dict(),
        "capacity_per_s": {mode: float(np.median(found)) for mode, found in capacity.items()},
        "throughput_of_one_at_a_time": {
            mode: float(np.median(np.divide(found, capacity["one at a time"])))
            for mode, found in capacity.items()
        },
        "latency_of_one_at_a_time": [
            {"load": load, **_latency(runs, load)} for load in plan.loads if load < 1
        ],
        "runs": [
            pooled([run for run in runs if (run.load, run.mode) == pair], best_of(capacity), plan)
            for pair in itertools.product(plan.loads, capacity)
        ],
    }


def _latency(runs: Sequence[Run], load: float) -> dict[str, float | None]:
    """Return the first mode's latency over that of one at a time: the median of the rounds."""
    pair = (next(iter(MODES)), "one at a time")
    ours, alone = (
        [[one.took_s for one in r.outcomes.in_time] for r in runs if (r.load, r.mode) == (load, m)]
        for m in pair
    )
    return {
        f"p{q}": float(np.median([np.percentile(a, q) / np.percentile(b, q) for a, b in rounds]))
        if (rounds := [(a, b) for a, b in zip(ours, alone, strict=True) if a and b])
        else None
        for q in (50, 95)
    }


def pooled(runs: Sequence[Run], capacity: float, plan: Plan) -> dict[str, Any]:
    """Return the figures of the rounds of one mode under one load."""
    rois = [one for run in runs for one in run.outcomes.rois]
    in_time = [one for one in rois if not one.error]
    lag_s = [lag for run in runs for lag in run.outcomes.lag_s]
    lost = sum((run.outcomes.lost for run in runs), Counter[str]())
    compute_s = sum(run.compute_s for run in runs)
    late = lost.pop(LATE, 0) + lost.pop("DeadlinePassed", 0)
    refused = [one for one in rois if one.error not in ("", LATE, "DeadlinePassed")]
    # answers after the last arrival would make an overloaded service look faster
    goodput = [
        sum(one.at_s <= plan.span_s for one in run.outcomes.in_time) / plan.span_s / capacity
        for run in runs
    ]
    low, high = _interval(goodput)
    return {
        "load": runs[0].load,
        "mode": runs[0].mode,
        "offered": len(rois),
        "in_time": len(in_time),
        "rejected": sum(lost.values()),
        "rejected_by": dict(lost),
        "late": late,
        "goodput_per_s": float(np.mean(goodput)) * capacity,
        "goodput_of_capacity": float(np.mean(goodput)),
        "goodput_low": low,
        "goodput_high": high,
        "goodput_of_capacity_by_round": goodput,
        **{f"p{q}_ms": _quantile_ms(rois, q) for q in (50, 95, 99)},
        **{f"stat_p{q}_ms": _quantile_ms([r for r in rois if r.is_stat], q) for q in (50, 95)},
        **{
            f"refusal_p{q}_ms": float(np.percentile([one.took_s for one in refused], q)) * 1e3
            if refused
            else None
            for q in (50, 95)
        },
        "fairness": fairness(rois),
        "wasted_share": sum(run.wasted_s for run in runs) / compute_s if compute_s else 0.0,
        "generator_lag_p99_ms": float(np.quantile(lag_s, 0.99)) * 1e3 if lag_s else 0.0,
    }


def fairness(rois: Sequence[Outcome]) -> float | None:
    """Return Jain's index over edges of the share that was answered in time, None without ROIs.

    1 if all edges got the same share, 1 / n if one of n edges got all. Source: Jain, Chiu and Hawe,
    DEC research report 301, 1984.
    """
    asked = Counter(one.edge for one in rois)
    got = Counter(one.edge for one in rois if not one.error)
    shares = np.array([got[edge] / asked[edge] for edge in asked])
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else None


def _quantile_ms(rois: Sequence[Outcome], percent: float) -> float | None:
    """Return a percentile of the time to the answer; None where that many had none in time."""
    took_s = [math.inf if one.error else one.took_s for one in rois]
    value = float(np.percentile(took_s, percent, method="higher")) * 1e3 if took_s else math.inf
    return value if math.isfinite(value) else None


def _interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean over rounds, by bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


async def _settled(service: Service) -> tuple[float, float]:
    """Wait until the service is idle, so that the next is not slowed down; its model time."""
    spent_s = service.model_time()
    for _ in range(30):
        await asyncio.sleep(1.0)
        if (now_s := service.model_time()) == spent_s:
            break
        spent_s = now_s
    return spent_s


def _load_table(result: Mapping[str, Any]) -> Rows:
    heads = ("load", "service", "goodput", "95 %", "in time", "refused", "late", "p50", "p95",
             "stat p95", "refusal p95", "Jain", "wasted")  # fmt: skip
    where = f"{result['service_cores']} of {result['cores']} cores"
    title = f"{result['reader']}; the service on {where}, {result['cpu']}; engine"
    title += f" {result['engine']}, device {result['device']}, instances {result['instances']},"
    title += f" stages {result['stages']}. Goodput of the best"
    title += " capacity; times in ms, - where that many had no answer in time"
    cells = [
        [f"{run['load']:g}", run["mode"], percent(run["goodput_of_capacity"]),
         f"{percent(run['goodput_low'])} to {percent(run['goodput_high'])}",
         *(percent(run[name] / max(run["offered"], 1)) for name in ("in_time", "rejected", "late")),
         *(number(run[f"{name}_ms"], 0) for name in ("p50", "p95", "stat_p95", "refusal_p95")),
         number(run["fairness"], 3), percent(run["wasted_share"], 2)]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, cells, title)
