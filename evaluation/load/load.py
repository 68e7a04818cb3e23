"""The cloud under load: goodput as a share of its capacity, and wasted work.

The same Poisson arrivals are sent to three services in turn, A B C A B C: the cloud as it is, with
batches of one, and with full batches first come, first served.
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
from evaluation.load.generator import LATE, Edges, Outcomes, Traffic, poisson

MODES: Mapping[str, Mapping[str, str]] = {
    "deadline": {},
    "one at a time": {"max_batch": "1"},
    "first come": {"scheduling": '"fcfs"', "max_queued_rois": "4096"},
}
"""The settings of the services that are compared; "first come" queues everything."""

LOADS = (0.5, 0.8, 1.0, 1.5, 2.0)
"""Offered load, as a share of the first mode's capacity."""

SATURATION_BUDGET_S = 60.0

SETTLE_S = 1.0
SETTLE_CHECKS = 30
"""Interval and largest number of the checks that a service has become idle."""


@dataclass(frozen=True)
class Service:
    """One running service: its mode, address, and URL of its metrics."""

    mode: str
    address: str
    metrics: str


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
    rounds: int = 2
    span_s: float = 10.0
    traffic: Traffic = field(default_factory=Traffic)
    seed: int = 0


@contextmanager
def services(
    folder: Path, model: str | None = None, program: Sequence[str] = CLOUD
) -> Iterator[list[Service]]:
    """Run one service for each of `MODES` at the same time; those not under load are idle."""
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
    """Measure the ROIs a second of each mode at saturation, for every round in turn."""
    found: dict[str, list[float]] = {service.mode: [] for service in started}
    for _ in range(plan.rounds):
        for service in started:
            async with _edges(service, plan.traffic) as edges:
                outcomes = await edges.saturate(4, plan.span_s / 2, SATURATION_BUDGET_S, 16)
            found[service.mode].append(len(outcomes.took_s) / outcomes.span_s)
            step(sum(map(len, found.values())), plan.rounds * len(started))
    return found


async def under_load(
    started: Sequence[Service], plan: Plan, capacity: float, step: OnStep = lambda _done, _of: None
) -> list[Run]:
    """Send every load in every round to each mode in turn."""
    runs: list[Run] = []
    total = plan.rounds * len(plan.loads) * len(started)
    for number in range(plan.rounds):
        for load in plan.loads:
            seed = plan.seed + number
            arrivals = poisson(plan.traffic, load * capacity, plan.span_s, seed)
            for service in started:
                before = _model_time(service)
                async with _edges(service, plan.traffic) as edges:
                    outcomes = await edges.send(arrivals)
                spent_s = np.subtract(await _settled(service), before)
                runs.append(Run(service.mode, load, outcomes, *map(float, spent_s)))
                step(len(runs), total)
    return runs


def as_dict(
    plan: Plan, capacity: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return the capacities, and the figures of each load and mode over all rounds."""
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
    """Return the first mode's latency over that of one at a time: the median of the rounds."""
    pair = (next(iter(MODES)), "one at a time")
    ours, alone = ([r.outcomes.took_s for r in runs if (r.load, r.mode) == (load, m)] for m in pair)
    return {
        f"p{q}": float(np.median([np.percentile(a, q) / np.percentile(b, q) for a, b in rounds]))
        if (rounds := [(a, b) for a, b in zip(ours, alone, strict=True) if a and b])
        else None
        for q in (50, 95)
    }


def _pooled(runs: Sequence[Run], capacity: float, plan: Plan) -> dict[str, Any]:
    took_s = np.array([took for run in runs for took in run.outcomes.took_s])
    lag_s = [lag for run in runs for lag in run.outcomes.lag_s]
    lost = sum((run.outcomes.lost for run in runs), Counter[str]())
    compute_s = sum(run.compute_s for run in runs)
    late = lost.pop(LATE, 0) + lost.pop("DeadlinePassed", 0)
    # answers after the last arrival would make an overloaded service look faster
    goodput = [sum(at <= plan.span_s for at in run.outcomes.at_s) / plan.span_s for run in runs]
    quantiles = np.quantile(took_s, (0.5, 0.95, 0.99)) * 1e3 if len(took_s) else [None] * 3
    return {
        "load": runs[0].load,
        "mode": runs[0].mode,
        "offered": sum(run.outcomes.rois for run in runs),
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
    """Wait until the service is idle, so that the next is not slowed down; its model time."""
    spent_s = _model_time(service)
    for _ in range(SETTLE_CHECKS):
        await asyncio.sleep(SETTLE_S)
        if (now_s := _model_time(service)) == spent_s:
            break
        spent_s = now_s
    return spent_s


def _model_time(service: Service) -> tuple[float, float]:
    """Return the seconds of the model so far, and those of them that were wasted."""
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
