"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

Every student starts from the same weights, takes the same number of steps and, seed for seed,
sees the same regions in the same order; only the soft target differs. A finished student is kept
in the folder of the comparison and not trained again.

The comparison's figures as JSON: teachers, arms, and what each arm gains over no teacher.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.distillation.pool import Pool, load_pool, write_arrays
from models.distillation.scores import Scores, figures, points_gained
from models.distillation.student import Teaching, scores_of, train_student
from models.distillation.teachers import (
    Teacher,
    ask_teachers,
    best_of,
    held_out_loss,
    mean_target,
    weigh,
    weighted_target,
)
from models.markdown import Rows, points
from models.runtime.errors import UnfitArtifact
from models.training.loop import save
from models.training.runs import SETTLED_ON, make_screening, ready

CLAIM_POINTS = 2.3
"""What the published system says that its distillation gained."""


def result(
    pool: Pool, teachers: Sequence[Teacher], weights: FloatArray,
    scores: Mapping[str, Sequence[Scores]], start: Scores,
) -> dict[str, Any]:  # fmt: skip
    """``weights`` are those of `weigh` ``(teachers, n)``; ``scores`` has one reader a seed."""
    scans = int(pool.scans[0])
    base = scores["none"]
    return {
        "claim_points": CLAIM_POINTS,
        "pool": _counts(pool),
        "best_single": best_of(teachers, pool).name,
        "teachers": [
            _teacher(teacher, pool, share)
            for teacher, share in zip(teachers, _shares(weights), strict=True)
        ],
        "at_start": figures(start, scans),
        "arms": {arm: _spread([figures(s, scans) for s in of]) for arm, of in scores.items()},
        "gained": {
            arm: points_gained(of, base, pool.val_patients, scans)
            for arm, of in scores.items()
            if arm != "none"
        },
    }


def _counts(pool: Pool) -> dict[str, int]:
    return {
        "learnt": pool.learnt,
        "held_out": len(pool.voxels) - pool.learnt,
        "with_nodule": int(pool.label.sum()),
        "val_nodules": len(pool.val_nodules),
        "val_patients": len(np.unique(pool.val_patients)),
        "val_scans": int(pool.scans[0]),
        "val_scan_alarms": len(pool.scan_alarms),
        "val_cube_alarms": len(pool.cube_alarms),
    }


def _shares(weights: FloatArray) -> list[dict[str, float]]:
    """Of each teacher: its mean weight, and how often it has the largest."""
    first = weights.argmax(0)
    return [
        {"mean_weight": float(own.mean()), "first": float((first == k).mean())}
        for k, own in enumerate(weights)
    ]


def _teacher(teacher: Teacher, pool: Pool, share: dict[str, float]) -> dict[str, Any]:
    return {
        "name": teacher.name,
        "weights": teacher.digest,
        "temperature": round(teacher.temperature, 3),
        "held_out_loss": held_out_loss(teacher, pool),
        **share,
        "figures": figures(teacher.validation, int(pool.scans[0])),
    }


def _spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Of every figure: mean and standard deviation over the seeds, and each seed's."""
    found = {}
    for name in runs[0]:
        each = [run[name] for run in runs]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        found[name] = {"mean": float(np.mean(each)), "sd": sd, "seeds": each}
    return found


ARMS = ("none", "single", "mean", "dynamic")
"""No teacher, the best single one, all of them alike, weights by teacher and sample."""

TIMED = (4, 24)
"""Steps of the two short runs that tell what one step takes, beginning and end apart."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        start: the screening network that every student begins with.
        teachers: weights of trained teachers.
        pool: folder of the pool.
        out: folder of the comparison.
        seeds: how many students each arm has.
        minutes: what one student may take; how many steps that makes is measured once.
        weight: the soft target's share of the loss.
        temperature: of the distillation.
        rate: the highest learning rate of a student.
        batch: regions a step.
        workers: processes that load batches.
    """

    start: Path
    teachers: tuple[Path, ...]
    pool: Path
    out: Path
    seeds: int = 3
    minutes: float = 2.5
    weight: float = 0.5
    temperature: float = 2.0
    rate: float = 3e-4
    batch: int = 32
    workers: int = 2

    def teaching(self, steps: int) -> Teaching:
        """How each student is trained."""
        return Teaching(
            steps, self.weight, self.temperature, self.rate, batch=self.batch, workers=self.workers
        )


def run_compare(asked: Comparison) -> dict[str, Any]:
    """Trains the students that are missing; the comparison as JSON.

    Raises:
        UnfitArtifact: the folder holds another comparison.
    """
    pool = load_pool(asked.pool)
    teachers = ask_teachers(asked.teachers, pool, asked.pool)
    weights = weigh(np.stack([t.pool for t in teachers]), pool.label)
    targets = soft_targets(teachers, weights, best_of(teachers, pool), asked.temperature)
    teaching = _teaching(asked, pool, teachers)
    scores: dict[str, list[Scores]] = {arm: [] for arm in ARMS}
    for seed in range(asked.seeds):
        for arm in ARMS:
            scores[arm].append(_student(asked, pool, targets[arm], teaching, f"{arm}_{seed}", seed))
    start = scores_of(make_screening(asked.start).eval(), pool)
    return {
        "start": asked.start.stem, "seeds": asked.seeds, "steps": teaching.steps,
        "batch": teaching.batch, "weight": asked.weight, "temperature": asked.temperature,
        "rate": asked.rate, **result(pool, teachers, weights, scores, start),
    }  # fmt: skip


def soft_targets(
    teachers: list[Teacher], weights: FloatArray, best: Teacher, temperature: float
) -> dict[str, FloatArray | None]:
    """For each of `ARMS` what students are taught of each region ``(n,)``; None without teacher."""
    said = np.stack([teacher.pool for teacher in teachers])
    return {
        "none": None,
        "single": mean_target(best.pool[None], temperature),
        "mean": mean_target(said, temperature),
        "dynamic": weighted_target(said, weights, temperature),
    }


def _student(
    asked: Comparison, pool: Pool, soft: FloatArray | None, teaching: Teaching, name: str, seed: int
) -> Scores:
    kept = asked.out / f"{name}.npz"
    if not kept.exists():
        network = ready(make_screening(asked.start), asked.start, pool.voxels[:SETTLED_ON])
        student = train_student(network, pool, soft, teaching, seed)
        save(student, asked.out / f"{name}.pt")
        said = scores_of(student, pool)
        write_arrays(kept, {f.name: getattr(said, f.name) for f in fields(Scores)})
    with np.load(kept) as found:
        return Scores(**found)


def _teaching(asked: Comparison, pool: Pool, teachers: list[Teacher]) -> Teaching:
    """How the students are trained: as the folder's plan says; the first time it is made."""
    path = asked.out / "plan.json"
    wanted = {
        "start": hashlib.sha256(asked.start.read_bytes()).hexdigest()[:12],
        "pool": pool.key,
        "teachers": [teacher.digest for teacher in teachers],
        "minutes": asked.minutes,
        "weight": asked.weight,
        "temperature": asked.temperature,
        "rate": asked.rate,
    }
    if path.exists():
        plan = json.loads(path.read_text())
        if other := [name for name in wanted if plan.get(name) != wanted[name]]:
            raise UnfitArtifact(f"{path}: the comparison there has another {', '.join(other)}")
        return asked.teaching(plan["steps"])
    steps = max(1, round(asked.minutes * 60 / _step_s(asked, pool)))
    asked.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**wanted, "steps": steps}, indent=1) + "\n")
    return asked.teaching(steps)


def _step_s(asked: Comparison, pool: Pool) -> float:
    """Seconds that one step takes on this machine."""
    took = []
    for steps in TIMED:
        began = time.monotonic()
        train_student(make_screening(asked.start), pool, None, asked.teaching(steps), 0)
        took.append(time.monotonic() - began)
    return max((took[1] - took[0]) / (TIMED[1] - TIMED[0]), 1e-3)


NAMES = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}

HEADS = {
    "at_0.5": "at 0.5", "at_1": "at 1", "at_2": "at 2", "at_4": "at 4", "mean": "mean", "auc": "AUC"
}  # fmt: skip


def distil_tables(result: Mapping[str, Any]) -> str:
    """Teachers, students, and what each arm gains over no teacher, in Markdown."""
    teachers = [
        [t["name"], *_percents(t["figures"]), f"{t['temperature']:.2f}",
         f"{t['held_out_loss']:.3f}", f"{100 * t['mean_weight']:.0f}", f"{100 * t['first']:.0f}"]
        for t in result["teachers"]
    ]  # fmt: skip
    more = ["temperature", "log loss", "mean weight, %", "largest, %"]
    students = [["before any step", *_percents(result["at_start"])]]
    for arm, of in result["arms"].items():
        spread = [f"{100 * of[name]['mean']:.1f} ± {100 * of[name]['sd']:.1f}" for name in HEADS]
        students.append([NAMES[arm], *spread])
    gained = [
        [NAMES[arm], *(points(gains[name], "points") for name in HEADS)]
        for arm, gains in result["gained"].items()
    ]
    gained.append(["published claim", *[""] * 4, f"{result['claim_points']:+.1f}", ""])
    return "\n".join(
        [
            Rows(["teacher", *HEADS.values(), *more], teachers).markdown(),
            Rows(["student", *HEADS.values()], students).markdown(),
            "Points over no teacher (95 % interval):\n",
            Rows(["student", *HEADS.values()], gained).markdown(),
        ]
    )


def _percents(figures: Mapping[str, float]) -> list[str]:
    return [f"{100 * figures[name]:.1f}" for name in HEADS]
