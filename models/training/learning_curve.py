"""The learning curve: the same network trained equally long on more and more patients.

It shows whether more patients or more training time would help.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.markdown import Rows, number
from models.training.data import Cubes
from models.training.loop import Plan, train
from models.training.runs import Run, make_screening, screening_task

AVERAGE = 0.99
"""Decay of the weight average, lower than in long runs."""


def run_learning(run: Run, shares: Sequence[float]) -> dict[str, Any]:
    """Train a run for each share of the patients; return their logs.

    A finished run is not trained again, an interrupted one continues.
    """
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
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        runs.append({
            "share": share, "patients": len(set(part.patients)), "nodules": len(part.pieces),
            "log": log,
        })  # fmt: skip
    return {
        "minutes": run.minutes, "seed": run.seed, "val_nodules": len(material.val_cubes),
        "val_scans": len(material.val_scans), "runs": runs,
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


def learning_table(result: Mapping[str, Any]) -> str:
    """Return a row for each share of the patients, in Markdown."""
    heads = ["patients", "nodules", "CPM", "at 1", "at 2", "at 8"]
    rows = [
        [run["patients"], run["nodules"],
         *(number(run["log"][-1][key]) for key in ("cpm", "at_1", "at_2", "at_8"))]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, rows).markdown()
