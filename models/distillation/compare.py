"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

Every student starts from the same weights, takes the same number of steps and, for each seed, sees
the same regions in the same order; only the soft target differs. Finished students are kept in the
folder of the comparison.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.distillation.pool import Pool, load_pool, stored
from models.distillation.scores import Scores, figures, points_gained
from models.distillation.student import Teaching, scores_of, train_student
from models.distillation.teachers import (
    Teacher,
    best_of,
    held_out_loss,
    mean_target,
    read_teachers,
    weigh,
    weighted_target,
)
from models.markdown import Rows, points
from models.runtime.errors import UnfitArtifact
from models.training.loop import save
from models.training.runs import SETTLE_CUBES, make_screening, ready

ARMS = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}
"""The soft targets that are compared, with their titles in tables."""

TIMED = (4, 24)
"""Steps of the two short runs whose difference gives the time of a step."""

HEADS = {
    "at_0.5": "at 0.5", "at_1": "at 1", "at_2": "at 2", "at_4": "at 4", "mean": "mean", "auc": "AUC"
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What is compared: ``seeds`` students of each arm, all from the screening network ``start``.

    ``minutes`` for one student give its number of steps, which ``teaching`` lacks; ``teachers`` are
    weights, ``pool`` and ``out`` folders.
    """

    start: Path
    teachers: tuple[Path, ...]
    pool: Path
    out: Path
    seeds: int = 3
    minutes: float = 2.5
    teaching: Teaching = field(default_factory=Teaching)


def run_compare(given: Comparison) -> dict[str, Any]:
    """Train the students that are missing; return the comparison as JSON.

    Raises:
        UnfitArtifact: the folder holds another comparison.
    """
    pool = load_pool(given.pool)
    teachers = read_teachers(given.teachers, pool, given.pool)
    weights = weigh(np.stack([t.pool for t in teachers]), pool.label)
    teaching = _teaching(given, pool, teachers)
    targets = soft_targets(teachers, weights, best_of(teachers, pool), teaching.temperature)
    scores: dict[str, list[Scores]] = {arm: [] for arm in ARMS}
    for seed in range(given.seeds):
        for arm in ARMS:
            name = f"{arm}_{seed}"
            scores[arm].append(_student(given, pool, targets[arm], teaching, name, seed))
    start = scores_of(make_screening(given.start).eval(), pool)
    return {
        "start": given.start.stem, "seeds": given.seeds, "steps": teaching.steps,
        "batch": teaching.batch, "weight": teaching.weight, "temperature": teaching.temperature,
        "rate": teaching.rate, **result(pool, teachers, weights, scores, start),
    }  # fmt: skip


def _teaching(given: Comparison, pool: Pool, teachers: list[Teacher]) -> Teaching:
    """Return the parameters with the folder's number of steps, which the first call measures."""
    path = given.out / "plan.json"
    wanted = {
        "start": hashlib.sha256(given.start.read_bytes()).hexdigest()[:12],
        "pool": pool.key,
        "teachers": [teacher.digest for teacher in teachers],
        "minutes": given.minutes,
        "weight": given.teaching.weight,
        "temperature": given.teaching.temperature,
        "rate": given.teaching.rate,
    }
    if path.exists():
        plan = json.loads(path.read_text())
        if other := [name for name in wanted if plan.get(name) != wanted[name]]:
            raise UnfitArtifact(f"{path}: holds a comparison with another {', '.join(other)}")
        return replace(given.teaching, steps=plan["steps"])
    steps = max(1, round(given.minutes * 60 / _step_s(given, pool)))
    given.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**wanted, "steps": steps}, indent=1) + "\n")
    return replace(given.teaching, steps=steps)


def _step_s(given: Comparison, pool: Pool) -> float:
    """Measure the seconds of one step on this machine."""
    took = []
    for steps in TIMED:
        began = time.monotonic()
        teaching = replace(given.teaching, steps=steps)
        train_student(make_screening(given.start), pool, None, teaching, 0)
        took.append(time.monotonic() - began)
    return max((took[1] - took[0]) / (TIMED[1] - TIMED[0]), 1e-3)


def soft_targets(
    teachers: list[Teacher], weights: FloatArray, best: Teacher, temperature: float
) -> dict[str, FloatArray | None]:
    """Return the soft target of every region ``(n,)`` for each arm; None without teacher."""
    logits = np.stack([teacher.pool for teacher in teachers])
    return {
        "none": None,
        "single": mean_target(best.pool[None], temperature),
        "mean": mean_target(logits, temperature),
        "dynamic": weighted_target(logits, weights, temperature),
    }


def _student(
    given: Comparison, pool: Pool, soft: FloatArray | None, teaching: Teaching, name: str, seed: int
) -> Scores:
    def scores() -> dict[str, FloatArray]:
        network = ready(make_screening(given.start), given.start, pool.voxels[:SETTLE_CUBES])
        student = train_student(network, pool, soft, teaching, seed)
        save(student, given.out / f"{name}.pt")
        return scores_of(student, pool)._asdict()

    return Scores(**stored(given.out / f"{name}.npz", scores))


def result(
    pool: Pool, teachers: Sequence[Teacher], weights: FloatArray,
    scores: Mapping[str, Sequence[Scores]], start: Scores,
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of pool, teachers and arms, and what each arm gains over no teacher.

    ``weights`` are those of `weigh` ``(teachers, n)``; ``scores`` has one student a seed.
    """
    scans = int(pool.scans[0])
    largest = weights.argmax(0)
    return {
        "claim_points": 2.3,  # the published gain of the system's distillation
        "pool": {
            "learnt": pool.learnt,
            "held_out": len(pool.voxels) - pool.learnt,
            "with_nodule": int(pool.label.sum()),
            "val_nodules": len(pool.val_nodules),
            "val_patients": len(np.unique(pool.val_patients)),
            "val_scans": scans,
            "val_scan_false_positives": len(pool.scan_false_positives),
            "val_cube_false_positives": len(pool.cube_false_positives),
        },
        "best_single": best_of(teachers, pool).name,
        "teachers": [
            {
                "name": teacher.name,
                "weights": teacher.digest,
                "temperature": round(teacher.temperature, 3),
                "held_out_loss": held_out_loss(teacher, pool),
                "mean_weight": float(weights[k].mean()),
                "first": float((largest == k).mean()),
                "figures": figures(teacher.validation, scans),
            }
            for k, teacher in enumerate(teachers)
        ],
        "at_start": figures(start, scans),
        "arms": {arm: _spread([figures(s, scans) for s in of]) for arm, of in scores.items()},
        "gained": {
            arm: points_gained(of, scores["none"], pool.val_patients, scans)
            for arm, of in scores.items()
            if arm != "none"
        },
    }


def _spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation of every figure over the seeds, and each seed's."""
    found = {}
    for name in runs[0]:
        each = [run[name] for run in runs]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        found[name] = {"mean": float(np.mean(each)), "sd": sd, "seeds": each}
    return found


def distil_tables(result: Mapping[str, Any]) -> str:
    """Return teachers, students, and what each arm gains over no teacher, in Markdown."""
    teachers = [
        [t["name"], *_percents(t["figures"]), f"{t['temperature']:.2f}",
         f"{t['held_out_loss']:.3f}", f"{100 * t['mean_weight']:.0f}", f"{100 * t['first']:.0f}"]
        for t in result["teachers"]
    ]  # fmt: skip
    more = ["temperature", "log loss", "mean weight, %", "largest, %"]
    students = [["before any step", *_percents(result["at_start"])]]
    for arm, of in result["arms"].items():
        spread = [f"{100 * of[name]['mean']:.1f} ± {100 * of[name]['sd']:.1f}" for name in HEADS]
        students.append([ARMS[arm], *spread])
    gained = [
        [ARMS[arm], *(points(gains[name], "points") for name in HEADS)]
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
