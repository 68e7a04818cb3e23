"""``overread-eval load``: the cloud under overload, beside simpler services.

The service and the load generator are pinned to disjoint CPU cores, so that neither slows the
other.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from evaluation.common.cli import CloudModel, Json, counting, show
from evaluation.common.processes import CLOUD
from evaluation.load.generator import Traffic
from evaluation.load.load import LOADS, Plan, as_dict, capacities, services, under_load
from models.markdown import Rows, number, percent
from models.runtime import hardware


def load_command(
    model: CloudModel = None,
    loads: Annotated[
        str, typer.Option(metavar="X[,X]", help="Loads as multiples of the measured capacity.")
    ] = ",".join(map(str, LOADS)),
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; each service is measured once a round.")
    ] = 2,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")] = 10.0,
    edges: Annotated[int, typer.Option(min=1, help="Simulated edges.")] = 16,
    budgets: Annotated[
        str, typer.Option(metavar="S[,S]", help="Budgets of studies in seconds, equally likely.")
    ] = "0.5,1,2",
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="FIXED,EACH", help="Milliseconds of a sleeping reader, without a model."
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Run service and edges on the same cores.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Goodput, rejections and wasted work of the cloud under overload, beside simpler services."""
    traffic = Traffic(edges=edges, budgets_s=_numbers(budgets, "--budgets"))
    plan = Plan(_numbers(loads, "--loads"), rounds, seconds, traffic, seed)
    cores = split_cores(shared=shared)
    result = asyncio.run(_measured(plan, model, _program(synthetic), cores))
    result = {
        "cpu": hardware.cpu_name(),
        "cores": hardware.cores(),
        "service_cores": len(cores.service),
        "pinned": cores.disjoint,
        "reader": f"asleep {synthetic} ms" if synthetic else model or "the cloud's own",
        **result,
    }
    show(result, as_json, _capacity_table(result), _load_table(result))


@dataclass(frozen=True)
class Cores:
    """The CPU cores of the service and of the load generator; all for both if there is but one."""

    service: frozenset[int]
    generator: frozenset[int]

    @property
    def disjoint(self) -> bool:
        """Return whether they have no core in common."""
        return not self.service & self.generator


def split_cores(*, shared: bool = False) -> Cores:
    """Return the first half of this process's cores for the service, the rest for the generator."""
    if not hasattr(os, "sched_getaffinity"):
        every = frozenset(range(os.cpu_count() or 1))
        return Cores(every, every)
    cores = sorted(os.sched_getaffinity(0))
    if shared or len(cores) < 2:
        return Cores(frozenset(cores), frozenset(cores))
    middle = len(cores) // 2
    return Cores(frozenset(cores[:middle]), frozenset(cores[middle:]))


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


async def _measured(
    plan: Plan, model: str | None, program: Sequence[str], cores: Cores
) -> dict[str, Any]:
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-load-"))
        with console.status("starting the services"), pinned(cores.service):
            started = stack.enter_context(services(Path(folder), model, program))
        stack.enter_context(pinned(cores.generator))
        with counting("capacity") as step:
            capacity = await capacities(started, plan, step)
        full = float(np.median(capacity[started[0].mode]))
        with counting("loads") as step:
            runs = await under_load(started, plan, full, step)
    return as_dict(plan, capacity, runs)


def _program(synthetic: str | None) -> Sequence[str]:
    if synthetic is None:
        return CLOUD
    fixed, each = _numbers(synthetic, "--synthetic")
    return ("evaluation.load.sleeping_service", "--fixed-ms", str(fixed), "--each-ms", str(each))


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"invalid {option} {text!r}, expected numbers: X,X") from None
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise typer.BadParameter(f"invalid {option} {text!r}, expected finite numbers from 0 up")
    return numbers


def _capacity_table(result: Mapping[str, Any]) -> Rows:
    ratios = result["throughput_of_one_at_a_time"]
    cells = [
        [mode, f"{rate:.1f}", f"{ratios[mode]:.2f}"]
        for mode, rate in result["capacity_per_s"].items()
    ]
    return Rows(["service", "ROIs a second", "of one at a time"], cells, "Saturated")


def _load_table(result: Mapping[str, Any]) -> Rows:
    heads = ("load", "service", "in time, of capacity", "in time", "rejected", "late",
             "p50 ms", "p95 ms", "p99 ms", "wasted")  # fmt: skip
    where = f"{result['service_cores']} of {result['cores']} cores"
    title = f"{result['reader']}; the service on {where}, {result['cpu']}"
    cells = [
        [f"{run['load']:g}", run["mode"], percent(run["goodput_of_capacity"]),
         *(percent(run[name] / max(run["offered"], 1)) for name in ("in_time", "rejected", "late")),
         *(number(run[f"{name}_ms"], 0) for name in ("p50", "p95", "p99")),
         percent(run["wasted_share"], 2)]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, cells, title)
