"""The learning curve: the same network trained equally long on more and more patients.

It shows whether more patients or more training time would help.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.charts import legend_above, new_figure, save_png
from models.markdown import Rows, number
from models.runtime.errors import ModelError
from models.training.data import Cubes
from models.training.loop import Plan, train
from models.training.runs import Run, make_screening, screening_task

AVERAGE = 0.99
"""Decay of the weight average, lower than in long runs."""


class NoLog(ModelError):
    """A run's log is missing or damaged."""


def run_learning(run: Run, shares: Sequence[float], longer: Sequence[Path] = ()) -> dict[str, Any]:
    """Train a run for each share of the patients; return its logs and those of ``longer``.

    A finished run is not trained again, an interrupted one continues. ``longer`` are folders of
    other runs.

    Raises:
        NoLog: a folder of ``longer`` has no log.
    """
    others = [{"name": path.name, "log": read_log(path)} for path in longer]
    material = run.material()
    runs = []
    for share in sorted(shares):
        part = part_of(material.learnt, share, run.seed)
        folder = run.out / f"{share:g}"
        if not (folder / "averaged.pt").exists():
            torch.manual_seed(run.seed)
            task = screening_task(replace(material, learnt=part), make_screening(None))
            plan = Plan(
                folder, run.minutes, rate=run.rate, average=AVERAGE, seed=run.seed,
                evaluation_minutes=run.minutes / 4 - 0.01,  # measured on validation four times
                refresh_minutes=run.minutes / 2,
                resume=True,
            )  # fmt: skip
            train(task, plan)
        runs.append({
            "share": share, "patients": len(set(part.patients)), "nodules": len(part.pieces),
            "log": read_log(folder),
        })  # fmt: skip
    return {
        "minutes": run.minutes, "seed": run.seed, "val_nodules": len(material.val_cubes),
        "val_scans": len(material.val_scans), "runs": runs, "longer": others,
    }  # fmt: skip


def part_of(cubes: Cubes, share: float, seed: int) -> Cubes:
    """Return the cubes of a share of the patients; a larger share contains a smaller one."""
    patients = np.random.default_rng(seed).permutation(sorted(set(cubes.patients)))
    chosen = set(patients[: max(1, round(share * len(patients)))].tolist())
    keep = [i for i, patient in enumerate(cubes.patients) if patient in chosen]
    return Cubes(
        tuple(cubes.pieces[i] for i in keep), tuple(cubes.patients[i] for i in keep),
        cubes.malignancy[keep], cubes.texture[keep],
    )  # fmt: skip


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return a run's figures in order of time.

    Raises:
        NoLog: the folder has none, or a line is not JSON.
    """
    path = run / "log.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise NoLog(f"{path}: {error}") from error


def save_curves(path: Path, result: Mapping[str, Any]) -> None:
    """Draw CPM on validation over patients and over the minutes of each run, as PNG."""
    figure = new_figure(11, 5)
    data, time = figure.subplots(1, 2)
    runs = result["runs"]
    patients = [run["patients"] for run in runs]
    for key, name in (("cpm", "CPM"), ("at_8", "sensitivity at 8 false positives per scan")):
        data.plot(patients, [run["log"][-1][key] for run in runs], "o-", label=name)
    data.set_xscale("log", base=2)
    data.set_xticks(patients, [str(count) for count in patients])
    data.set(xlabel=f"training patients, {result['minutes']:g} minutes each")
    for run in runs:
        _over_time(time, run["log"], f"{run['patients']} patients")
    for run in result["longer"]:
        _over_time(time, run["log"], f"{run['name']}, from trained weights")
    time.set(xlabel="training time, minutes", ylabel="CPM on validation")
    data.set(ylabel="CPM and sensitivity on validation")
    for axes in (data, time):
        axes.grid(alpha=0.3)
        legend_above(axes, 2)
    figure.suptitle("Screening network by training patients and training time")
    save_png(figure, path)


def _over_time(axes: Any, log: list[dict[str, float]], name: str) -> None:
    axes.plot([at["minutes"] for at in log], [at["cpm"] for at in log], marker=".", label=name)


def learning_table(result: Mapping[str, Any]) -> str:
    """Return a row for each share of the patients, in Markdown."""
    heads = ["patients", "nodules", "CPM", "at 1", "at 2", "at 8"]
    rows = [
        [run["patients"], run["nodules"],
         *(number(run["log"][-1][key]) for key in ("cpm", "at_1", "at_2", "at_8"))]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, rows).markdown()
