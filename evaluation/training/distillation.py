"""Distillation compared: no teacher, the best one, the mean of all, dynamic weights.

All students take the same number of steps and, for each seed, begin from the same weights and see
the same regions in the same order; only the soft target differs.
"""

import copy
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evaluation.training.comparison import cpm, gained, ranks
from imaging.roi import ROI_SHAPE
from imaging.volume import FloatArray
from models.distillation.distil import Distillation, Weigh, dynamic
from models.distillation.regions import values_of
from models.distillation.teachers import Teacher, best_of
from models.runtime.artifacts import WEIGHTS
from models.runtime.errors import MissingData
from models.training.data import load_cubes
from models.training.hybrid import HybridTask
from models.training.loop import train
from models.training.run_folder import WEIGHTS as AVERAGED
from models.training.run_folder import check_plan, kept, write_atomically
from models.training.runs import Run, hybrid_task, make_hybrid, make_screening, ready

ARMS: Mapping[str, Weigh] = {
    "none": lambda teachers, label: np.full((len(teachers), len(label)), np.nan),
    "single": lambda teachers, label: single(teachers, label),
    "mean": lambda teachers, label: np.full((len(teachers), len(label)), 1 / len(teachers)),
    "dynamic": dynamic,
}
"""The soft targets that are compared, by the weights of the teachers."""

VIEWS = ("alone", "both")
"""The scores of each CPM, see `Validation.scored`."""

FIRST, SCREENER, LAST = "76e16e85", "1bba2368", "8f0dc8bb"
"""Commits of the teachers: the second readers of the first and the last, and the larger one that
went on from the first, on candidates of the screening network of the one between."""

_Scored = dict[str, list[int]]  # of a network in each of the views: the ranks of the nodules


def single(teachers: Sequence[Teacher], label: FloatArray) -> FloatArray:
    """Return weights of 1 for the best teacher, of 0 for the others."""
    best = best_of(teachers)
    chosen = np.array([[float(teacher is best)] for teacher in teachers])
    return np.broadcast_to(chosen, (len(teachers), len(label)))


def committed(folder: Path, commit: str, kind: str) -> Path:
    """Return the file of the float network of a commit, taken from the history if it is missing.

    Raises:
        MissingData: the history lacks it.
    """
    path = folder / commit / f"{kind}-fp32.onnx"
    if not path.exists():
        line = ["git", "show", f"{commit}:models/weights/{path.name}"]
        shown = subprocess.run(line, cwd=WEIGHTS, capture_output=True, check=False)
        if shown.returncode:
            reason = shown.stderr.decode().strip()
            raise MissingData(path, f"is not in the history of this checkout: {reason}")
        write_atomically(path, lambda file: file.write(shown.stdout))
    return path


class _FirstRound(HybridTask):
    """A task that is stopped after its first round."""

    def refresh(self, network: nn.Module) -> None:
        del network
        raise StopIteration


def larger_teacher(data: Path, folder: Path, screening: Path) -> Path:
    """Return the teacher that was stopped after 500 of 2,000 steps; train it if it is missing."""
    first = committed(folder, FIRST, "hybrid")
    run = Run(data, folder / "teacher-B", 5e-4, (first,), seed=3, steps=2000)
    if not (run.out / AVERAGED).exists():
        torch.manual_seed(run.seed)
        network, files = (
            make_hybrid(run.start),
            (committed(folder, SCREENER, "screening"), screening),
        )
        material = run.material()
        ready(network, run.start, material)
        task = hybrid_task(material, [make_screening(one).eval() for one in files], network)
        plan = run.plan(material, decay=0.05, screening=[*map(str, files)])
        with suppress(StopIteration):
            train(_FirstRound(**vars(task)), plan)
    return run.out / AVERAGED


def recorded(data: Path, out: Path) -> Distillation:
    """Return the distillation of the second reader that ships."""
    folder, screening = out.parent, WEIGHTS / "screening-fp32.onnx"
    larger = larger_teacher(data, folder, screening)
    last, first = (committed(folder, commit, "hybrid") for commit in (LAST, FIRST))
    return Distillation(
        data, out, 5e-5, (larger,), steps=200, screening=(screening,),
        teachers=(last, larger, first),
    )  # fmt: skip


def compare(given: Distillation, seeds: int = 3) -> dict[str, Any]:
    """Train ``seeds`` students of each of the `ARMS`, and measure them and the teachers.

    Students with a result are not trained again; one that was interrupted goes on.

    Raises:
        UnfitArtifact: weights do not fit, or a folder holds another comparison or regions of
            other networks.
    """
    options = {"steps": given.steps, "rate": given.rate, **asdict(given.teaching)}
    # weights that do not fit end it before anything is written
    work, _ = multiply_adds(given.new()), (given.hybrids, given.screeners)
    own = {name: getattr(given, name) for name in ("start", "teachers", "count", "spec")}
    check_plan(given.out, {**own, **given.origin, **options}, given.data)
    known = kept(given.out / "teachers.json", partial(of_teachers, given))
    students: dict[str, list[_Scored]] = {arm: [] for arm in ARMS}
    for seed, (arm, way) in product(range(seeds), ARMS.items()):
        run = replace(given, out=given.out / f"{arm}-{seed}", seed=seed, resume=True)
        make = partial(_student, given, run, arm, way)
        students[arm].append(kept(run.out / "scores.json", make))
    return {"seeds": seeds, **options, **result(known, students, work)}


def of_teachers(given: Distillation) -> dict[str, Any]:
    """Return what does not depend on students: the teachers, and what all are measured on."""
    teachers, label = given.answers
    weights = dynamic(teachers, label)[:, np.isfinite(label)]
    logits = [given.validation.scored(hybrid) for hybrid in given.hybrids]
    # of a network that would answer with the mean of their logits
    mean = {
        view: tuple(np.mean(part, 0) for part in zip(*(one[view] for one in logits), strict=True))
        for view in VIEWS
    }
    work = [multiply_adds(hybrid) for hybrid in given.hybrids]
    rows = [
        {
            "name": str(path), "best": teacher is best_of(teachers),
            "temperature": teacher.temperature, "log_loss": teacher.held_out_loss,
            "weight": float(weight.mean()), "multiply_adds": own,
            "scores": _ranks(scored, given.validation.scans),
        }
        for path, teacher, weight, own, scored in zip(
            given.teachers, teachers, weights, work, logits, strict=True
        )
    ]  # fmt: skip
    scores = _ranks(mean, given.validation.scans)
    rows.append({"name": "mean logit", "best": False, "multiply_adds": sum(work), "scores": scores})
    return {
        "regions": {
            "learnt": len(label), "held_out": len(values_of(given.chunks[1], "nodule")),
            "taught": weights.shape[1], "with_nodule": int((label == 1).sum()),
        },
        "patients": load_cubes(given.data / "nodules", "val").patients,
        "scans": given.validation.scans,
        "teachers": rows,
    }  # fmt: skip


def _student(given: Distillation, run: Run, arm: str, weighed: Weigh) -> dict[str, Any]:
    network = given.student(run, arm, weighed).eval()
    return _ranks(given.validation.scored(network), given.validation.scans)


def _ranks(scored: Mapping[str, Any], scans: int) -> dict[str, Any]:
    return {view: ranks(scored[view][0], scored[view][1], scans) for view in VIEWS}


def multiply_adds(network: nn.Module) -> int:
    """Count the multiply-adds of one pass over a region."""
    with FlopCounterMode(display=False) as counter:  # a pass that computes shapes only
        copy.deepcopy(network).eval().to("meta")(torch.empty(1, 1, *ROI_SHAPE, device="meta"))
    return int(counter.get_total_flops()) // 2


def result(
    known: Mapping[str, Any], arms: Mapping[str, Sequence[_Scored]], work: int
) -> dict[str, Any]:
    """Return the CPM of teachers and arms in each view, and what each arm gains over others.

    ``known`` is what `of_teachers` gives; ``arms`` have one student a seed, of ``work``
    multiply-adds.
    """
    patients, teachers = known["patients"], known["teachers"]
    best = next(one["scores"] for one in teachers if one["best"])
    none, count = arms["none"], len(arms["none"])
    references = {
        "no teacher": none, "best teacher": [best] * count,
        "mean logit": [teachers[-1]["scores"]] * count,
    }  # fmt: skip
    return {
        "claim_points": 2.3,  # the published gain of the system's distillation
        "regions": known["regions"], "scans": known["scans"],
        "nodules": len(patients), "patients": len(set(patients)),
        "multiply_adds": work,
        "teachers": [{**one, "scores": _cpm([one["scores"]])} for one in teachers],
        "arms": {arm: _cpm(of) for arm, of in arms.items()},
        "gained": {
            over: {
                arm: {
                    view: gained([s[view] for s in of], [s[view] for s in less], patients)
                    for view in VIEWS
                }
                for arm, of in arms.items()
                if of is not less
            }
            for over, less in references.items()
        },
    }  # fmt: skip


def _cpm(seeds: Sequence[_Scored]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation of the CPM over the seeds, and each seed's, by view."""
    found = {}
    for view in VIEWS:
        each = [cpm(one[view]) for one in seeds]
        sd = float(np.std(each, ddof=int(len(each) > 1)))
        found[view] = {"mean": float(np.mean(each)), "sd": sd, "seeds": each}
    return found
