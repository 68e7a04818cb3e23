"""The cloud under load: the share of its capacity that is answered in time, and what it wastes.

The same Poisson arrivals are offered to the service as it is, to the same with batches of one,
and to the same that serves first come, first served in full batches, in turn, A B C A B C.
"""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from cloud.describe import fetch_description
from evaluation.accuracy.bootstrap import OnStep
from evaluation.common.processes import CLOUD, cloud_service
from evaluation.load.generator import LATE, Edges, Offered, Traffic, poisson

MODES: Mapping[str, Mapping[str, str]] = {
    "deadline": {},
    "one at a time": {"max_batch": "1"},
    "first come": {"scheduling": '"fcfs"', "max_queued_rois": "4096"},
}
"""The services that are compared, by what is set in each; first come queues whatever comes."""

LOADS = (0.5, 0.8, 1.0, 1.5, 2.0)
"""Offered load, as a share of the first mode's capacity."""

SATURATION_BUDGET_S = 60.0

SETTLE_S = 1.0
SETTLE_LOOKS = 30
"""How often it is looked whether a service has come to rest, and how many times at most."""


@dataclass(frozen=True)
class Service:
    """One running service: its mode, its address and where its metrics are."""

    mode: str
    address: str
    metrics: str


@dataclass(frozen=True)
class Run:
    """What one mode did with one load in one round; times in seconds, rates in ROIs a second."""

    mode: str
    load: float
    offered: Offered
    compute_s: float
    wasted_s: float


@dataclass(frozen=True)
class Plan:
    """What is run: loads, rounds of ``span_s`` each, the studies, and the first round's seed."""

    loads: Sequence[float] = LOADS
    rounds: int = 2
    span_s: float = 10.0
    traffic: Traffic = field(default_factory=Traffic)
    seed: int = 0


@contextmanager
def services(
    folder: Path, model: str | None = None, program: Sequence[str] = CLOUD
) -> Iterator[list[Service]]:
    """One service for each of `MODES`, all there at once; those not under load are idle."""
    with ExitStack() as stack:
        started = []
        for number, (mode, given) in enumerate(MODES.items()):
            port = _free_port()
            config = folder / f"{number}.toml"
            rows = {"metrics_port": str(port), **given}
            config.write_text("".join(f"{name} = {value}\n" for name, value in rows.items()))
            address = stack.enter_context(cloud_service(model, program=program, config=config))
            started.append(Service(mode, address, f"http://127.0.0.1:{port}/metrics"))
        yield started


async def capacities(
    started: Sequence[Service], plan: Plan, step: OnStep = lambda _done, _of: None
) -> dict[str, list[float]]:
    """ROIs a second of each mode when there is always enough to do, for every round in turn."""
    found: dict[str, list[float]] = {service.mode: [] for service in started}
    for _ in range(plan.rounds):
        for service in started:
            async with _edges(service, plan.traffic) as edges:
                offered = await edges.saturate(4, plan.span_s / 2, SATURATION_BUDGET_S, 16)
            found[service.mode].append(len(offered.took_s) / offered.span_s)
            step(sum(map(len, found.values())), plan.rounds * len(started))
    return found


async def under_load(
    started: Sequence[Service], plan: Plan, capacity: float, step: OnStep = lambda _done, _of: None
) -> list[Run]:
    """Every load in every round, offered to each mode in turn."""
    runs: list[Run] = []
    total = plan.rounds * len(plan.loads) * len(started)
    for number in range(plan.rounds):
        for load in plan.loads:
            seed = plan.seed + number
            arrivals = poisson(plan.traffic, load * capacity, plan.span_s, seed)
            for service in started:
                before = _model_time(service)
                async with _edges(service, plan.traffic) as edges:
                    offered = await edges.offer(arrivals)
                spent_s = np.subtract(await _settled(service), before)
                runs.append(Run(service.mode, load, offered, *map(float, spent_s)))
                step(len(runs), total)
    return runs


def as_dict(
    plan: Plan, capacity: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> dict[str, Any]:
    """Capacities, and for each load and mode what was answered in time; rounds are pooled."""
    first = float(np.median(next(iter(capacity.values()))))
    pairs = [(load, mode) for load in plan.loads for mode in capacity]
    return {
        "seed": plan.seed,
        "rounds": plan.rounds,
        "span_s": plan.span_s,
        "edges": plan.traffic.edges,
        "rois_a_study": list(plan.traffic.rois),
        "budgets_s": list(plan.traffic.budgets_s),
        "stat_share": plan.traffic.stat_share,
        "capacity_per_s": {mode: float(np.median(found)) for mode, found in capacity.items()},
        "throughput_of_one_at_a_time": {
            mode: float(np.median(np.divide(found, capacity["one at a time"])))
            for mode, found in capacity.items()
        },
        "latency_of_one_at_a_time": [
            {"load": load, **_latency(runs, load)} for load in plan.loads if load < 1
        ],
        "runs": [
            _pooled([run for run in runs if (run.load, run.mode) == pair], first, plan)
            for pair in pairs
        ],
    }


def _latency(runs: Sequence[Run], load: float) -> dict[str, float | None]:
    """Time of an answer of the first mode over that of one at a time; the median of the rounds."""
    pair = (next(iter(MODES)), "one at a time")
    ours, alone = ([r.offered.took_s for r in runs if (r.load, r.mode) == (load, m)] for m in pair)
    return {
        f"p{q}": float(np.median([np.percentile(a, q) / np.percentile(b, q) for a, b in rounds]))
        if (rounds := [(a, b) for a, b in zip(ours, alone, strict=True) if a and b])
        else None
        for q in (50, 95)
    }


def _pooled(runs: Sequence[Run], capacity: float, plan: Plan) -> dict[str, Any]:
    took_s = np.array([took for run in runs for took in run.offered.took_s])
    lag_s = [lag for run in runs for lag in run.offered.lag_s]
    lost = sum((run.offered.lost for run in runs), Counter[str]())
    compute_s = sum(run.compute_s for run in runs)
    late = lost.pop(LATE, 0) + lost.pop("DeadlinePassed", 0)
    # what is answered after the last arrival would make an overloaded service look faster
    goodput = [sum(at <= plan.span_s for at in run.offered.at_s) / plan.span_s for run in runs]
    quantiles = np.quantile(took_s, (0.5, 0.95, 0.99)) * 1e3 if len(took_s) else [None] * 3
    return {
        "load": runs[0].load,
        "mode": runs[0].mode,
        "offered": sum(run.offered.rois for run in runs),
        "in_time": len(took_s),
        "rejected": sum(lost.values()),
        "rejected_by": dict(lost),
        "late": late,
        "goodput_per_s": float(np.mean(goodput)),
        "goodput_of_capacity": float(np.mean(goodput)) / capacity,
        "goodput_of_capacity_by_round": [float(one) / capacity for one in goodput],
        **{
            f"{name}_ms": None if value is None else float(value)
            for name, value in zip(("p50", "p95", "p99"), quantiles, strict=True)
        },
        "wasted_share": sum(run.wasted_s for run in runs) / compute_s if compute_s else 0.0,
        "generator_lag_p99_ms": float(np.quantile(lag_s, 0.99)) * 1e3 if lag_s else 0.0,
    }


def _edges(service: Service, traffic: Traffic) -> Edges:
    return Edges(service.address, fetch_description(service.address).roi_shape, traffic.edges)


async def _settled(service: Service) -> tuple[float, float]:
    """Its model time once it reads no more: what it left undone would burden the next's turn."""
    spent_s = _model_time(service)
    for _ in range(SETTLE_LOOKS):
        await asyncio.sleep(SETTLE_S)
        if (now_s := _model_time(service)) == spent_s:
            break
        spent_s = now_s
    return spent_s


def _model_time(service: Service) -> tuple[float, float]:
    """Seconds that the model has worked so far, and those that nobody had anything of."""
    with urllib.request.urlopen(service.metrics, timeout=10) as answer:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
