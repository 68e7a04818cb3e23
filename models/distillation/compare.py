"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

The teachers are the members of a hybrid. Every student starts from the same weights, takes the same
number of steps and, for each seed, sees the same samples in the same order; only the soft target
differs. Finished samples and students are kept in the folder of the comparison, so a comparison
that was interrupted continues.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from imaging.volume import FloatArray
from models.data_folder import CALIBRATION
from models.distillation.student import Teaching, train_student
from models.distillation.teachers import (
    DistillationSample,
    Teacher,
    answers_of,
    draw_sample,
    make_samples,
    mean_target,
    read_teachers,
    weigh,
    weighted_target,
)
from models.markdown import Rows, points
from models.networks.hybrid import HybridNetwork
from models.runtime.errors import UnfitArtifact
from models.training.comparison import Scores, figures, gained, kept, scores_of
from models.training.compose import Composer
from models.training.data import load_cubes
from models.training.loop import save
from models.training.runs import (
    Material,
    Run,
    make_hybrid,
    make_screening,
    only,
    ready,
    screening_task,
)

ARMS = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}
"""The soft targets that are compared, with their titles in tables."""

HELD_OUT = 10
"""One of ten samples is held out: its cubes are of patients kept for calibration."""

HEADS = {"cpm": "CPM", "at_1": "at 1", "at_2": "at 2", "at_8": "at 8"}


@dataclass(frozen=True)
class Comparison(Run):
    """What is compared: ``seeds`` students of each arm, all from the screening network ``start``.

    ``teachers`` are weights of a hybrid, whose members teach; ``samples`` is the number of samples
    that students learn from.
    """

    teachers: tuple[Path, ...] = ()
    samples: int = 400
    seeds: int = 3
    teaching: Teaching = field(default_factory=Teaching)


def run_compare(given: Comparison) -> dict[str, Any]:
    """Make the samples and train the students that are missing; return the comparison as JSON.

    Raises:
        UnfitArtifact: the folder holds another comparison.
    """
    _check_plan(given)
    material = cache(given.material)  # read only where a sample or a student is missing
    hybrid = make_hybrid(given.teachers).eval()
    learnt, held_out = _samples(given, material, hybrid)
    teachers, label = read_teachers(hybrid.spec.reads, learnt, held_out)
    weights = weigh(np.stack([t.logits for t in teachers]), label)
    ends = np.cumsum([len(answers_of(path)[0]) for path in learnt])
    targets = soft_targets(teachers, weights, given.teaching.temperature)

    def student(arm: str, seed: int) -> Scores:
        network = ready(make_screening(only(given.start)), given.start, material())
        target = targets[arm]
        soft = None if target is None else np.split(target, ends[:-1])
        trained = train_student(network, learnt, soft, given.teaching, given.rate, seed)
        save(trained.state_dict(), given.out / f"{arm}_{seed}.pt")
        return _scores(material(), trained)

    def start() -> dict[str, Any]:
        # of the network that all students start from
        scores = _scores(material(), make_screening(only(given.start)))
        return {**scores, "scans": len(material().val_scans)}

    scores: dict[str, list[Scores]] = {arm: [] for arm in ARMS}
    for seed, arm in product(range(given.seeds), ARMS):
        scores[arm].append(kept(given.out / f"{arm}_{seed}.json", partial(student, arm, seed)))
    at_start = kept(given.out / "start.json", start)
    scans = at_start["scans"]
    patients = load_cubes(given.data / "nodules", "val").patients
    return {
        "start": only(given.start).stem, "seeds": given.seeds, **_options(given),
        "lessons": {
            "learnt": len(learnt), "held_out": len(held_out), "places": len(label),
            "with_nodule": int(label.sum()),
        },
        "val_scans": scans,
        **result(teachers, weights, scores, at_start, patients, scans),
    }  # fmt: skip


def _options(given: Comparison) -> dict[str, Any]:
    names = ("steps", "batch", "weight", "temperature")
    return {**{name: getattr(given.teaching, name) for name in names}, "rate": given.rate}


def _check_plan(given: Comparison) -> None:
    """Write what is compared into the folder, or compare it with what is there."""
    path = given.out / "plan.json"
    wanted: dict[str, Any] = {
        "start": _digest(only(given.start)), "teachers": [_digest(one) for one in given.teachers],
        "lessons": given.samples, "seed": given.seed, **_options(given),
    }  # fmt: skip
    plan = kept(path, lambda: wanted)
    if other := [name for name in wanted if plan.get(name) != wanted[name]]:
        raise UnfitArtifact(f"{path}: holds a comparison with another {', '.join(other)}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _samples(
    given: Comparison, material: Callable[[], Material], hybrid: HybridNetwork
) -> tuple[list[Path], list[Path]]:
    """Return the files of the samples to learn from, and of those that are held out."""
    screener = make_screening(only(given.start)).eval()

    @cache
    def composer(split: str) -> Composer:
        if split == "learnt":
            return screening_task(material(), screener).composer
        cubes = load_cubes(given.data / "nodules", CALIBRATION).pieces
        return replace(composer("learnt"), cubes=cubes)

    def samples(split: str, count: int, seed: int) -> list[Path]:
        def draw(rng: np.random.Generator) -> DistillationSample:
            return draw_sample(composer(split), screener, hybrid, rng)

        return make_samples(given.out / split, count, draw, seed=seed)

    held_out = -(-given.samples // HELD_OUT)
    return (
        samples("learnt", given.samples, given.seed),
        samples("held_out", held_out, given.seed + 1),
    )


def soft_targets(
    teachers: Sequence[Teacher], weights: FloatArray, temperature: float
) -> dict[str, FloatArray | None]:
    """Return the soft target of every place ``(n,)`` for each arm; None without teacher."""
    logits = np.stack([teacher.logits for teacher in teachers])
    return {
        "none": None,
        "single": mean_target(best_of(teachers).logits[None], temperature),
        "mean": mean_target(logits, temperature),
        "dynamic": weighted_target(logits, weights, temperature),
    }


def best_of(teachers: Sequence[Teacher]) -> Teacher:
    """Return the one with the least loss on the held-out samples."""
    return min(teachers, key=lambda teacher: teacher.held_out_loss)


def _scores(material: Material, student: nn.Module) -> Scores:
    return scores_of(screening_task(material, student, trained=False), student)


def result(
    teachers: Sequence[Teacher], weights: FloatArray, scores: Mapping[str, Sequence[Scores]],
    start: Scores, patients: Sequence[str], scans: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of teachers and arms, and what each arm gains over no teacher.

    ``weights`` are those of `weigh` ``(teachers, n)``; ``scores`` has one student a seed;
    ``patients`` are those of the validation cubes.
    """
    largest = weights.argmax(0)
    return {
        "claim_points": 2.3,  # the published gain of the system's distillation
        "val_nodules": len(patients),
        "val_patients": len(set(patients)),
        "best_single": best_of(teachers).name,
        "teachers": [
            {
                "name": teacher.name,
                "temperature": round(teacher.temperature, 3),
                "held_out_loss": teacher.held_out_loss,
                "mean_weight": float(weights[k].mean()),
                "first": float((largest == k).mean()),
            }
            for k, teacher in enumerate(teachers)
        ],
        "at_start": figures(start, scans),
        "arms": {arm: _spread([figures(s, scans) for s in of]) for arm, of in scores.items()},
        "gained": {
            arm: {
                name: {"points": one.pop("value"), **one}
                for name, one in gained(of, scores["none"], patients, scans).items()
            }
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
        [t["name"], f"{t['temperature']:.2f}", f"{t['held_out_loss']:.3f}",
         f"{100 * t['mean_weight']:.0f}", f"{100 * t['first']:.0f}"]
        for t in result["teachers"]
    ]  # fmt: skip
    students = [["before any step", *(f"{100 * result['at_start'][name]:.1f}" for name in HEADS)]]
    for arm, of in result["arms"].items():
        spread = [f"{100 * of[name]['mean']:.1f} ± {100 * of[name]['sd']:.1f}" for name in HEADS]
        students.append([ARMS[arm], *spread])
    gains = [
        [ARMS[arm], *(points(of[name], "points") for name in HEADS)]
        for arm, of in result["gained"].items()
    ]
    gains.append(["published claim", f"{result['claim_points']:+.1f}", *[""] * (len(HEADS) - 1)])
    heads = ["teacher", "temperature", "log loss", "mean weight, %", "largest, %"]
    return "\n".join(
        [
            Rows(heads, teachers).markdown(),
            Rows(["student", *HEADS.values()], students).markdown(),
            "Points over no teacher (95 % interval):\n",
            Rows(["student", *HEADS.values()], gains).markdown(),
        ]
    )
