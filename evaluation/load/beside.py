"""``overread-eval beside``: the cloud beside Triton and Ray Serve, under the same load.

Each has the same reader, which sleeps, on the same cores. The same Poisson arrivals are sent to
each in turn, over the Open Inference Protocol with one ROI a request, and to the cloud as a study a
stream too. How capacity, goodput and latency are counted is that of `evaluation.load.load`.
"""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from evaluation.common.cli import Json, show
from evaluation.load import peers
from evaluation.load.generator import Edges, Traffic
from evaluation.load.inference_edges import InferenceEdges
from evaluation.load.load import (
    LOADS,
    Plan,
    Run,
    Service,
    best_of,
    capacities,
    numbers_of,
    pinned,
    pooled,
    services,
    split_cores,
    under_load,
)
from models.markdown import Rows, number, percent
from models.runtime import hardware

STREAMS = "Overread, a stream a study"
REQUESTS = "Overread, a request an ROI"
TRITON, TRITON_PLAIN = "Triton", "Triton, batching alone"
RAY = "Ray Serve"

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    TRITON: peers.TRITON_SETTINGS,
    TRITON_PLAIN: peers.TRITON_PLAIN_SETTINGS,
    RAY: peers.RAY_SETTINGS,
}
"""The settings of the servers; the cloud has its defaults."""

SATURATED = 8
"""Studies that are open while the capacity is measured: their 32 ROIs fit every queue."""


@dataclass(frozen=True)
class Peer(Service):
    """A service that is called over the Open Inference Protocol; ``metrics`` may be empty."""

    model: str
    margin_s: float = 0.0

    def connect(self, edges: int) -> Edges:
        """Return simulated edges that send a request for each ROI."""
        return InferenceEdges(self.address, peers.ROI_SHAPE, edges, self.model, self.margin_s)

    def model_time(self) -> tuple[float, float]:
        """Return the seconds of the model, 0 if they are not known."""
        return super().model_time() if self.metrics else (0.0, 0.0)


def beside_command(
    triton_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            exists=True,
            dir_okay=False,
            help="Interpreter with nvidia-pytriton; without it Triton is left out.",
        ),
    ] = None,
    ray_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            exists=True,
            dir_okay=False,
            help="Interpreter with ray[serve]; without it Ray Serve is left out.",
        ),
    ] = None,
    loads: Annotated[
        str, typer.Option(metavar="X[,X]", help="Loads as multiples of the measured capacity.")
    ] = ",".join(map(str, LOADS)),
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; each service is measured once a round.")
    ] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")] = 4.0,
    reader: Annotated[
        str, typer.Option(metavar="FIXED,EACH", help="The reader's ms a batch and ms an ROI.")
    ] = "20,5",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """The cloud beside Triton and Ray Serve: goodput, refusals and latency under the same load."""
    if len(times_ms := numbers_of(reader, "--reader")) != 2:
        raise typer.BadParameter(f"invalid --reader {reader!r}, expected two numbers: FIXED,EACH")
    plan = Plan(numbers_of(loads, "--loads"), rounds, seconds, Traffic(), seed)
    versions = peers.versions(triton_python, ray_python)
    before = os.getloadavg()
    service, generator = split_cores()
    with ExitStack() as stack:
        with Console(stderr=True).status("starting the services"), pinned(service):
            pair = (times_ms[0], times_ms[1])
            started = stack.enter_context(contenders(triton_python, ray_python, pair))
        stack.enter_context(pinned(generator))
        capacity = asyncio.run(capacities(started, plan, at_once=SATURATED))
        runs = asyncio.run(under_load(started, plan, best_of(capacity)))
    given = {"Triton": triton_python, "Ray Serve": ray_python}
    result = {
        "cpu": hardware.cpu_name(),
        "cores": hardware.cores(),
        "service_cores": len(service),
        "pinned": not service & generator,
        "load_average": {"before": list(before), "after": list(os.getloadavg())},
        "reader": f"asleep {times_ms[0]:g} ms a batch and {times_ms[1]:g} ms an ROI",
        "versions": versions,
        "left_out": [name for name, python in given.items() if python is None],
        **as_dict(plan, capacity, runs),
    }
    show(result, as_json, *_tables(result))


@contextmanager
def contenders(
    triton_python: Path | None, ray_python: Path | None, times_ms: tuple[float, float]
) -> Iterator[list[Service]]:
    """Run the cloud and the servers whose interpreters are given; those not under load are idle.

    ``times_ms`` are those of the reader for a batch and for each ROI.

    Raises:
        ServiceFailed: one cannot be started.
    """
    fixed, a_roi = map(str, times_ms)
    program = ("evaluation.load.sleeping_service", "--fixed-ms", fixed, "--each-ms", a_roi)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-beside-")))
        cloud = services(folder, program=program, modes={STREAMS: {}})
        (ours,) = stack.enter_context(cloud)
        started = [ours, Peer(REQUESTS, ours.address, ours.metrics, "sleeping")]
        if triton_python is not None:
            for mode in (TRITON, TRITON_PLAIN):
                settings = SETTINGS[mode]
                server = peers.triton(triton_python, folder / str(len(started)), settings, times_ms)
                address = stack.enter_context(server)
                margin_s = settings["timeout_margin_s"]
                started.append(Peer(mode, address, "", peers.MODEL, margin_s))
        if ray_python is not None:
            server = peers.ray_serve(
                ray_python, folder / str(len(started)), SETTINGS[RAY], times_ms
            )
            started.append(Peer(RAY, stack.enter_context(server), "", peers.MODEL))
        yield started


def as_dict(
    plan: Plan, capacity: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return settings, capacities, and the figures of each load and service over all rounds."""
    best = best_of(capacity)
    pairs = list(itertools.product(plan.loads, capacity))
    found = [
        pooled([run for run in runs if (run.load, run.mode) == pair], best, plan) for pair in pairs
    ]
    for one in found:  # known of the cloud alone
        del one["wasted_share"]
    return {
        **plan.as_dict(),
        "settings": {mode: dict(given) for mode, given in SETTINGS.items() if mode in capacity},
        "capacity_per_s": {mode: float(np.median(rates)) for mode, rates in capacity.items()},
        "capacity_per_s_by_round": {mode: list(rates) for mode, rates in capacity.items()},
        "runs": found,
    }


def _tables(result: Mapping[str, Any]) -> Iterator[Rows | str]:
    for name in result["left_out"]:
        yield f"{name} is left out: no interpreter with it is given."
    heads = ("load", "service", "goodput", "refused", "late", "p50", "stat p50", "stat p95",
             "refusal p50")  # fmt: skip
    where = f"{result['service_cores']} of {result['cores']} cores, {result['cpu']}"
    title = f"{result['reader']}; each service on {where}. Goodput of the best capacity;"
    title += " times in ms, - where that many had no answer in time"
    cells = [
        [f"{run['load']:g}", run["mode"], percent(run["goodput_of_capacity"], 0),
         *(percent(run[name] / max(run["offered"], 1), 0) for name in ("rejected", "late")),
         *(number(run[f"{name}_ms"], 0) for name in ("p50", "stat_p50", "stat_p95", "refusal_p50"))]
        for run in result["runs"]
    ]  # fmt: skip
    saturated = [[mode, f"{rate:.1f}"] for mode, rate in result["capacity_per_s"].items()]
    yield Rows(["service", "ROIs a second"], saturated, "Saturated")
    yield Rows(heads, cells, title)
