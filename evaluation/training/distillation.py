"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

All students take the same number of steps and, for each seed, begin from the same weights and see
the same regions in the same order; only the soft target differs.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evaluation.training.comparison import cpm, gained, ranks
from imaging.roi import ROI_SHAPE
from models.distillation.distil import STUDENT, Lessons, Weigh, dynamic, new_student, train_student
from models.distillation.student import Teaching
from models.distillation.teachers import Teacher
from models.networks.hybrid import HybridSpec
from models.training.data import load_cubes
from models.training.run_folder import check_plan, kept
from models.training.runs import Run

ARMS: Mapping[str, Weigh] = {
    "no teacher": lambda teachers, label: np.full((len(teachers), len(label)), np.nan),
    "best single teacher": lambda teachers, label: np.array(
        [np.full(len(label), float(one is best_of(teachers))) for one in teachers]
    ),
    "fixed mean of all": lambda teachers, label: np.full(
        (len(teachers), len(label)), 1 / len(teachers)
    ),
    "dynamic weights": dynamic,
}
"""The soft targets that are compared, by the weights of the teachers."""

VIEWS = ("alone", "both")
"""The scores of each CPM, see `models.training.hybrid.Validation.scored`."""


def best_of(teachers: Sequence[Teacher]) -> Teacher:
    """Return the one with the least loss on the held-out regions."""
    return min(teachers, key=lambda teacher: teacher.held_out_loss)


def compare(
    run: Run, lessons: Callable[[], Lessons], *, seeds: int = 3, spec: HybridSpec = STUDENT,
    teaching: Teaching | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train ``seeds`` students of each of the `ARMS`, and measure them and the teachers.

    Students with a result are not trained again; one that was interrupted goes on.

    Raises:
        UnfitArtifact: weights do not fit, or a folder holds another comparison.
    """
    teaching = teaching or Teaching()
    options = {"steps": run.steps, "rate": run.rate, **asdict(teaching)}
    work, known = multiply_adds(new_student(run, spec)), lessons()
    own = {"start": run.start, "teachers": tuple(known.paths), "spec": spec, "of": len(known.label)}
    check_plan(run.out, {**own, **options}, run.data)
    networks = kept(run.out / "teachers.json", lambda: {"rows": of_teachers(known)})["rows"]
    for arm, weighed in ARMS.items():
        scores = []
        for seed in range(seeds):
            out = run.out / f"{arm.split()[0]}-{seed}"
            one = replace(run, out=out, seed=seed, resume=True)
            make = partial(_student, one, spec, known, arm, weighed, teaching)
            scores.append(kept(out / "scores.json", make))
        networks.append({"name": f"student, {arm}", "multiply_adds": work, "scores": scores})
    patients = load_cubes(run.data / "nodules", "val").patients
    taught = known.label[np.isfinite(known.label)]
    return {
        "seeds": seeds, **options,
        "claim_points": 2.3,  # the published gain of the system's distillation
        "regions": {"learnt": len(known.label), "held_out": known.held_out,
                    "taught": len(taught), "with_nodule": int(taught.sum())},
        "scans": known.validation.scans, "nodules": len(patients), "patients": len(set(patients)),
        **result(networks, patients),
    }  # fmt: skip


def of_teachers(lessons: Lessons) -> list[dict[str, Any]]:
    """Return the teachers' rows, and that of a network with the mean of their logits."""
    weights = dynamic(lessons.teachers, lessons.label)[:, np.isfinite(lessons.label)]
    scored = [lessons.validation.scored(hybrid) for hybrid in lessons.hybrids]
    work, scans = [multiply_adds(hybrid) for hybrid in lessons.hybrids], lessons.validation.scans
    rows = [
        {
            "name": f"teacher, {path}", "best": teacher is best_of(lessons.teachers),
            "temperature": teacher.temperature, "log_loss": teacher.held_out_loss,
            "weight": float(weights[k].mean()), "multiply_adds": work[k],
            "scores": [_ranks(scored[k], scans)],
        }
        for k, (path, teacher) in enumerate(zip(lessons.paths, lessons.teachers, strict=True))
    ]  # fmt: skip
    mean = {
        view: [np.mean([one[view][part] for one in scored], 0) for part in (0, 1)] for view in VIEWS
    }
    scores = [_ranks(mean, scans)]
    return [*rows, {"name": "teacher, mean logit", "multiply_adds": sum(work), "scores": scores}]


def _student(
    run: Run, spec: HybridSpec, lessons: Lessons, arm: str, weighed: Weigh, teaching: Teaching
) -> dict[str, Any]:
    student = new_student(run, spec)
    network = train_student(run, student, lessons, arm=arm, weighed=weighed, teaching=teaching)
    return _ranks(lessons.validation.scored(network.eval()), lessons.validation.scans)


def _ranks(scored: Mapping[str, Sequence[Any]], scans: int) -> dict[str, Any]:
    return {view: ranks(scored[view][0], scored[view][1], scans) for view in VIEWS}


def multiply_adds(network: nn.Module) -> int:
    """Count the multiply-adds of one pass over a region."""
    with FlopCounterMode(display=False) as counter:  # a pass that computes shapes only
        copy.deepcopy(network).eval().to("meta")(torch.empty(1, 1, *ROI_SHAPE, device="meta"))
    return int(counter.get_total_flops()) // 2


def result(networks: Sequence[dict[str, Any]], patients: Sequence[str]) -> dict[str, Any]:
    """Return the CPM of networks over their seeds, and what each student gains over others.

    The ``scores`` of a network are ranks by view, one a seed; students are the last of them.
    """
    scores = {
        one["name"]: {view: np.array([seed[view] for seed in one["scores"]]) for view in VIEWS}
        for one in networks
    }
    students = {arm: scores[f"student, {arm}"] for arm in ARMS}
    best = next(one["name"] for one in networks if one.get("best"))
    references = {
        "no teacher": students["no teacher"], "best teacher": scores[best],
        "mean logit": scores["teacher, mean logit"],
    }  # fmt: skip
    rows = []
    for one in networks:
        row = {"temperature": None, "log_loss": None, "weight": None, **one}
        for view, each in scores[row["name"]].items():
            cpms = [cpm(seed) for seed in each]
            row[view], row[f"{view}_sd"] = cpm(each), float(np.std(cpms, ddof=len(cpms) > 1))
        rows.append({key: value for key, value in row.items() if key != "scores"})
    return {
        "networks": rows,
        "gained": [
            {"student": arm, "over": over,
             **{view: gained(of[view], less[view], patients) for view in VIEWS}}
            for over, less in references.items()
            for arm, of in students.items()
            if of is not less
        ],
    }  # fmt: skip
