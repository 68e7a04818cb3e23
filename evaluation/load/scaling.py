"""``overread-eval scaling``: what batches, stages, instances, Ray and early answers gain.

The same studies are sent to services that differ in one setting, in turn, A B C A B C. Measured are
the ROIs a second at saturation, and the answers of a study that is alone: the time of the last, and
the mean of all. An edge that merges each answer as it arrives waits for that mean; one that merges
when all are there waits for the last.

Published for a pipeline on GPUs: 4.7 times the throughput by batches, 3.2 times by stages, 41 %
less latency by asynchronous merging.
"""

import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from cloud.describe import fetch_description
from cloud.settings import CloudSettings
from evaluation.common.cli import CloudModel, Json, each, show
from evaluation.common.tables import columns_table
from evaluation.load.generator import Edges, Outcomes
from evaluation.load.load import (
    Devices,
    Service,
    Synthetic,
    pinned,
    program_of,
    ran_on,
    reader_name,
    services,
    split_cores,
)
from models.runtime import hardware

SINGLE, BATCHES = "one at a time", "batches"
PUBLISHED = {"batches": 4.7, "stages": 3.2, "merging": -0.41}

_COLUMNS = {
    "name": ("service", "{}"),
    "rois_per_s": ("ROIs a second", "{:.1f}"),
    "throughput_ratio": ("ratio", "{:.2f}"),
    "last_ms": ("last, ms", "{:.0f}"),
    "added_ms": ("added, ms", "{:+.1f}"),
    "mean_ms": ("mean, ms", "{:.0f}"),
    "merging": ("mean to last", "{:+.0%}"),
}


@dataclass
class Figures:
    """The figures of one service in each round.

    ``per_s`` are ROIs a second at saturation; ``last_s`` and ``mean_s`` the seconds of the last
    answer, and of the mean one, of a study that is alone.
    """

    per_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    mean_s: list[float] = field(default_factory=list)


def modes_of(
    instances: int, stages: int, devices: Sequence[str], *, asleep: bool, ray: bool
) -> dict[str, dict[str, str]]:
    """Return the settings of each service; the first two are the references of the others.

    A model that sleeps has a device for each part and each instance, as on a machine with GPUs.
    """
    own = {"devices": json.dumps(list(devices))} if devices else {}
    modes = {SINGLE: {**own, "max_batch": "1"}, BATCHES: own}
    if stages > 1:
        parts = json.dumps([f"fake:{i}" for i in range(stages)])
        modes[f"{stages} stages"] = {
            **({"stage_engines": parts} if asleep else own), "stages": str(stages)
        }  # fmt: skip
    if instances > 1:
        spread = json.dumps([f"fake:{i}" for i in range(instances)])
        several = {"devices": spread} if asleep else {**own, "instances": str(instances)}
        modes[f"{instances} instances"] = several
    if ray:
        for workers in dict.fromkeys((1, instances)):
            name = f"Ray, {workers} worker{'s' * (workers > 1)}"
            modes[name] = {**own, "ray": '"local"', "instances": str(workers)}
    return modes


def scaling_command(
    model: CloudModel = None,
    synthetic: Synthetic = None,
    device: Devices = None,
    instances: Annotated[
        int, typer.Option(min=1, help="Copies of the model on each device; 1: leave out.")
    ] = 2,
    stages: Annotated[int, typer.Option(min=1, help="Parts of the model; 1: leave out.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Also as actors of a Ray on this machine.")
    ] = False,
    batches: Annotated[int, typer.Option(min=1, help="Full batches of ROIs of a study.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")] = 4.0,
    shared: Annotated[
        bool, typer.Option("--shared", help="Run services and edges on the same cores.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What batches, stages, instances, Ray workers and early answers gain on this machine."""
    rois = batches * int(CloudSettings.model_fields["max_batch"].default)
    modes = modes_of(instances, stages, device or (), asleep=synthetic is not None, ray=ray)
    service, generator = split_cores(shared=shared)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-scaling-"))
        with Console(stderr=True).status("starting the services"), pinned(service):
            program = program_of(synthetic)
            started = stack.enter_context(services(Path(folder), model, program, modes=modes))
        stack.enter_context(pinned(generator))
        engines = {one.mode: ran_on(one) for one in started}
        figures = asyncio.run(compare(started, rois, rounds, seconds))
    result = {
        **engines[BATCHES],
        "cores": hardware.cores(),
        "service_cores": len(service),
        "pinned": not service & generator,
        "reader": reader_name(model, synthetic),
        "instances": instances,
        "stages": stages,
        "rois_a_study": rois,
        "rounds": rounds,
        "span_s": seconds,
        "published": PUBLISHED,
        **as_dict(figures, {name: on["engine"] for name, on in engines.items()}),
    }
    title = f"{result['reader']}; studies of {rois} ROIs; {result['cpu']}; engine"
    title += f" {result['engine']}, device {result['device']}. Ratios to {SINGLE}, below"
    title += f" {BATCHES} to that"
    show(result, as_json, columns_table(_COLUMNS, result["services"], title))


async def compare(
    started: Sequence[Service], rois: int, rounds: int, seconds: float
) -> dict[str, Figures]:
    """Measure every service in each round, saturated and with one study at a time."""
    found = defaultdict[str, Figures](Figures)
    for service in each([*started] * rounds, "services"):
        shape, one = fetch_description(service.address).roi_shape, found[service.mode]
        async with Edges(service.address, shape, 16) as edges:
            outcomes = await edges.saturate(rois, seconds, budget_s=60.0, at_once=16)
            one.per_s.append(len(outcomes.in_time) / outcomes.span_s)
            alone = await edges.saturate(rois, seconds / 2, budget_s=60.0, at_once=1)
        last_s, mean_s = answer_times(alone, rois)
        one.last_s.append(last_s)
        one.mean_s.append(mean_s)
    return dict(found)


def answer_times(outcomes: Outcomes, rois: int) -> tuple[float, float]:
    """Return the medians over studies of the last answer's seconds and of the mean of all.

    The studies came one after another, so each is the next ``rois`` outcomes.
    """
    took_s = np.array([one.took_s for one in outcomes.rois]).reshape(-1, rois)
    return float(np.median(took_s.max(axis=1))), float(np.median(took_s.mean(axis=1)))


def as_dict(figures: Mapping[str, Figures], engines: Mapping[str, str]) -> dict[str, Any]:
    """Return the medians over the rounds; ratios are taken round by round.

    ``added_ms`` is the time of the last answer over that of `BATCHES`.
    """
    rows = []
    for name, one in figures.items():
        base = figures[SINGLE if name in (SINGLE, BATCHES) else BATCHES]
        added_s = np.subtract(one.last_s, figures[BATCHES].last_s)
        rows.append(
            {
                "name": name,
                "engine": engines[name],
                "rois_per_s": float(np.median(one.per_s)),
                "throughput_ratio": float(np.median(np.divide(one.per_s, base.per_s))),
                "last_ms": float(np.median(one.last_s)) * 1e3,
                "added_ms": float(np.median(added_s)) * 1e3,
                "mean_ms": float(np.median(one.mean_s)) * 1e3,
                "merging": float(np.median(np.divide(one.mean_s, one.last_s))) - 1.0,
            }
        )
    return {"services": rows}
