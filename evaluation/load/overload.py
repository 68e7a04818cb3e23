"""Goodput and wasted work of services under overload.

The same Poisson arrivals are sent to each service in turn, A B C D A B C D. Times count from the
intended arrival, and an ROI that was not answered in time counts as one that never came.
"""

import asyncio
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud.scheduling.arrivals import Rules
from cloud.scheduling.cost import BatchTiming, CostModel
from cloud.scheduling.scheduler import Scheduler
from cloud.scheduling.waiting import WaitingRoi
from evaluation.load.services import Service
from evaluation.load.traffic import LATE, Outcome, Outcomes, Traffic, poisson
from evaluation.run import each
from protos.deadline import Deadline
from protos.messages import Priority

SINGLE = "one at a time"
"""The service that others are compared with, where it is one of them."""


@dataclass(frozen=True)
class Plan:
    """The measurement: loads, rounds of ``span_s`` each, and studies.

    While the capacity is measured ``at_once`` studies are open.
    """

    loads: Sequence[float] = (0.5, 1.0, 2.0, 5.0)
    rounds: int = 5
    span_s: float = 6.0
    at_once: int = 16
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True)
class Run:
    """The outcomes of one mode under one load in one round, and its model's time."""

    mode: str
    load: float
    outcomes: Outcomes
    compute_s: float = 0.0
    wasted_s: float = 0.0


async def capacities(started: Sequence[Service], plan: Plan) -> dict[str, list[float]]:
    """Measure the ROIs a second of each mode, for every round in turn."""
    found = defaultdict[str, list[float]](list)
    for service in each([*started] * plan.rounds, "capacity"):
        async with service.connect(plan.traffic.edges) as edges:
            outcomes = await edges.saturate(4, plan.span_s / 2, budget_s=60.0, at_once=plan.at_once)
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
        arrivals = poisson(plan.traffic, load * capacity, plan.span_s, seed=turn)
        before = service.model_time()
        async with service.connect(plan.traffic.edges) as edges:
            outcomes = await edges.send(arrivals)
        spent_s = np.subtract(await _settled(service), before)
        runs.append(Run(service.mode, load, outcomes, *map(float, spent_s)))
    return runs


async def _settled(service: Service) -> tuple[float, float]:
    """Wait until the service is idle, so that the next is not slowed down; its model time."""
    spent_s = service.model_time()
    for _ in range(30):
        await asyncio.sleep(1.0)
        if (now_s := service.model_time()) == spent_s:
            break
        spent_s = now_s
    return spent_s


def overload(started: Sequence[Service], plan: Plan) -> dict[str, Any]:
    """Measure capacities, then all loads; return the figures."""
    capacity = asyncio.run(capacities(started, plan))
    found = figures(plan, capacity, asyncio.run(under_load(started, plan, best_of(capacity))))
    return found | {"admission_ms": admission_ms()}


def admission_ms(waiting: int = 400, instances: int = 4) -> float:
    """Return the median milliseconds in which an ROI is admitted while so many wait."""
    now_s, cost = time.monotonic(), CostModel()
    for n in (1, 8):
        cost.observe(n, 0.008 + 0.0065 * n)
    scheduler = Scheduler(Rules(), BatchTiming(cost, cost, 8), lambda: now_s)
    scheduler.busy_until_s = dict.fromkeys(range(instances), now_s)
    took_s = list[float]()
    for i in range(2 * waiting):
        priority = Priority.ROUTINE if i % 10 else Priority.STAT
        deadline = Deadline(now_s + 60.0 + i % 7, lambda: now_s)
        roi = WaitingRoi(
            deadline=deadline, priority=priority, arrived_s=now_s, site=f"edge-{i % 16}"
        )
        began_s = time.perf_counter()
        scheduler.admit([roi])
        scheduler.put([roi])
        took_s.append(time.perf_counter() - began_s)
        if i >= waiting:
            scheduler.release([roi])
    return 1e3 * float(np.median(took_s[waiting:]))


def figures(
    plan: Plan, capacity: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return the capacities, and the figures of each load and mode over all rounds."""
    result: dict[str, Any] = {
        "rounds": plan.rounds,
        "span_s": plan.span_s,
        "edges": plan.traffic.edges,
        "budgets_s": list(plan.traffic.budgets_s),
        "capacity_per_s": {mode: float(np.median(found)) for mode, found in capacity.items()},
        "runs": [
            pooled([run for run in runs if (run.load, run.mode) == pair], best_of(capacity), plan)
            for pair in itertools.product(plan.loads, capacity)
        ],
    }
    if SINGLE in capacity:
        result["throughput_of_one_at_a_time"] = {
            mode: float(np.median(np.divide(found, capacity[SINGLE])))
            for mode, found in capacity.items()
        }
    return result


def pooled(runs: Sequence[Run], capacity: float, plan: Plan) -> dict[str, Any]:
    """Return the figures of the rounds of one mode under one load; None where none is known."""
    rois = [one for run in runs for one in run.outcomes.rois]
    lost = sum((run.outcomes.lost for run in runs), Counter[str]())
    compute_s = sum(run.compute_s for run in runs)
    late = lost.pop(LATE, 0) + lost.pop("DeadlinePassed", 0)
    refused = [one.took_s for one in rois if one.error not in ("", LATE, "DeadlinePassed")]
    goodput = [goodput_of(run, plan.span_s, capacity) for run in runs]
    low, high = _interval(goodput)
    stat = [one for one in rois if one.is_stat]
    return {
        "load": runs[0].load,
        "mode": runs[0].mode,
        "offered": len(rois),
        "in_time": sum(not one.error for one in rois),
        "rejected": sum(lost.values()),
        "late": late,
        "goodput_of_capacity": float(np.mean(goodput)),
        "goodput_low": low,
        "goodput_high": high,
        "p50_ms": _quantile_ms(rois, 50),
        **{f"stat_p{q}_ms": _quantile_ms(stat, q) for q in (50, 95)},
        "refusal_p50_ms": 1e3 * float(np.median(refused)) if refused else None,
        "stat_lost_share": sum(bool(one.error) for one in stat) / max(1, len(stat)),
        "dropped_share": sum(run.outcomes.dropped for run in runs)
        / max(1, sum(run.outcomes.accepted for run in runs)),
        "fairness": fairness(rois),
        "wasted_share": sum(run.wasted_s for run in runs) / compute_s if compute_s else None,
    }


def goodput_of(run: Run, span_s: float, capacity: float) -> float:
    """Return the answers in time, as a share of the capacity in ROIs a second."""
    # answers after the last arrival would make an overloaded service look faster
    return sum(one.at_s <= span_s for one in run.outcomes.in_time) / span_s / capacity


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
