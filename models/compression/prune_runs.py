"""The pruning commands: prune, fine-tune for a short while, judge on validation, time it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from models.compression.prune_cost import (
    BOX,
    Box,
    files,
    multiply_adds,
    parameters_left,
    times_in_turn,
)
from models.compression.prune_figures import compared
from models.compression.prune_ways import CONTROL, pruned
from models.networks.screening import ScreeningSpec
from models.runtime.hardware import cpu_name
from models.training.loop import train
from models.training.material import load_cubes
from models.training.recipe import screening_task
from models.training.runs import Run, load_weights, make_screening, ready, regions_of
from models.training.screening import ScreeningTask, summary

CALIBRATION_CUBES = 8
"""Enough for ranges that time does not depend on; `overread-models export` takes more."""

AVERAGE = 0.98
"""A short run's weights are averaged over its last fifty steps or so."""


@dataclass(frozen=True)
class Cell:
    """One run of the table: a way of `prune_ways` and the share of parameters that goes."""

    way: str
    share: float

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.way if self.way == CONTROL else f"{self.way}-{self.share:g}"


def run_compare(
    run: Run, cells: Sequence[Cell], *, engine: str = "openvino", rounds: int = 10
) -> dict[str, Any]:
    """Every cell pruned, fine-tuned for `run.minutes`, judged and timed, beside the control.

    A cell that has its result is not run again; one that was cut off begins anew.
    """
    cells = [Cell(CONTROL, 0.0), *cells]
    missing = [cell for cell in cells if not (run.out / cell.name / "result.json").exists()]
    task = prepared(run) if missing else None
    for cell in missing:
        assert task is not None  # it was prepared
        _run_cell(run, task, cell, run.out / cell.name)
    _time_missing(run, cells, engine, rounds)
    found = [_read(run.out / cell.name / "result.json") for cell in cells]
    times = [_read(run.out / cell.name / "time.json") for cell in cells]
    head = {"start": str(run.start), "minutes": run.minutes, "box": list(BOX), "engine": engine}
    return {**head, "rounds": rounds, "cpu": cpu_name(), **compared(found, times)}


def run_structured(run: Run, share: float) -> dict[str, Any]:
    """Channels pruned and fine-tuned; `averaged.pt` in `run.out` is a start like any other."""
    found = _run_cell(run, prepared(run), Cell("channels", share), run.out)
    shown = {key: value for key, value in found.items() if key not in ("found", "alarms")}
    weights = run.out / "averaged.pt"
    spec = ScreeningSpec.of(load_weights(weights))
    return {**shown, "weights": str(weights), "spec": asdict(spec)}


def prepared(run: Run) -> ScreeningTask:
    """The task on the start's weights, its hard negatives mined once for every cell."""
    material = run.material()
    network = ready(make_screening(run.start), run.start, regions_of(material))
    task = screening_task(material, network)
    task.refresh(task.network.eval())
    return task


def _run_cell(run: Run, task: ScreeningTask, cell: Cell, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    own = pruned(task, cell.way, cell.share, run.minutes, seed=run.seed)
    before = task.judge(own.network.eval())
    plan = replace(run.plan(decay=0.02), out=folder, average=AVERAGE)
    network = train(own, plan)
    found, alarms = task.scores(network.eval())
    result = {
        "way": cell.way,
        "share": cell.share,
        "whole": sum(p.numel() for p in task.network.parameters()),
        "parameters": parameters_left(network),
        "multiply_adds": multiply_adds(network),
        "steps": json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["steps"],
        "scans": len(task.scans),
        "before": before,
        "after": summary(found, alarms, len(task.scans)),
        "found": _finite(found),
        "alarms": _finite(alarms),
    }
    _write(folder / "result.json", result)
    return result


def _time_missing(run: Run, cells: Sequence[Cell], engine: str, rounds: int) -> None:
    """Each cell in turn with the control, which is timed against itself."""
    missing = [cell for cell in cells if not (run.out / cell.name / "time.json").exists()]
    if not missing:
        return
    pieces = load_cubes(run.data / "nodules", "train").pieces[:CALIBRATION_CUBES]
    boxes = [piece.voxels[None, None, :48, :48, :48] for piece in pieces]
    control = _files(run.out / CONTROL, boxes)
    for cell in track(missing, "timing pruned networks"):
        own = _files(run.out / cell.name, boxes)
        told = {}
        for precision in control:
            took = times_in_turn([control[precision], own[precision]], engine, range(rounds))
            told[f"{precision}_ms"] = float(np.median(took[:, 1])) * 1e3
            told[f"{precision}_ratio"] = float(np.median(took[:, 1] / took[:, 0]))
            told[f"{precision}_bytes"] = own[precision].stat().st_size
        _write(run.out / cell.name / "time.json", told)


def _files(folder: Path, boxes: Sequence[Box]) -> dict[str, Path]:
    return files(make_screening(folder / "averaged.pt").eval(), boxes, folder)


def _finite(values: np.ndarray) -> list[float]:
    """Logits for JSON; a nodule that raised no peak is below every threshold."""
    return [round(float(value), 4) if np.isfinite(value) else -1e9 for value in values]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _write(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
