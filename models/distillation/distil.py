"""Distillation: hybrids, the teachers, make one small hybrid, the student: the second reader.

A teacher's answer is its logit. Teachers cost many times what a student costs, so regions are drawn
and read once, and kept beside the run for all students that come from the same teachers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from imaging.volume import FloatArray
from models.distillation.regions import CHUNK, answers_of, make_chunks, values_of
from models.distillation.student import StudentTask, Teaching
from models.distillation.teachers import Teacher, calibrated, soft_target, weigh
from models.networks.hybrid import HybridNetwork, HybridSpec, shortened
from models.training.hybrid import HybridTask, Validation, validation_of
from models.training.loop import placed, train
from models.training.regions import RegionDrawer
from models.training.run_folder import check_plan, digest
from models.training.runs import Material, Run, make_hybrid, make_screening, ready, region_drawer

STUDENT = HybridSpec(reads=(32, 48), blocks=(2, 3, 2), depth=2)
"""The second reader that ships."""

REGIONS = 8192
"""Regions to learn from."""

HELD_OUT = 10
"""One chunk of regions is held out for each ten: teachers are calibrated on these."""

Weigh = Callable[[Sequence[Teacher], FloatArray], FloatArray]
"""Returns each teacher's weight in each region ``(teachers, n)``, NaN for none; labels ``(n,)``."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """What students learn from, and are measured on.

    Attributes:
        paths: weights of the teachers; ``hybrids``: their networks.
        chunks: the files of the regions to learn from; ``held_out``: the number of others.
        label: whether each region holds a nodule ``(n,)``, NaN if that is not taught.
    """

    material: Material
    validation: Validation
    paths: Sequence[Path]
    hybrids: Sequence[nn.Module]
    teachers: Sequence[Teacher]
    chunks: Sequence[Path]
    held_out: int
    label: FloatArray


def lessons_of(
    run: Run, screening: Sequence[Path], teachers: Sequence[Path],
    *, count: int = REGIONS, size: int = CHUNK,
) -> Lessons:  # fmt: skip
    """Return the lessons of a run, whose regions and answers are made where they are missing.

    ``teachers`` are weights of hybrids; the first finds the hardest candidates of the networks
    ``screening`` in whole scans. ``count`` regions or more are learnt from.

    Raises:
        UnfitArtifact: weights do not fit, or the folder holds regions of other networks.
    """
    # weights that do not fit end it before anything is written
    hybrids = [placed(make_hybrid([path]).eval()) for path in teachers]
    screeners = [make_screening(path).eval() for path in screening]
    folder = run.out.parent / "regions"
    origin = {"miner": teachers[0], "screening": tuple(screening), "size": size}
    check_plan(folder, origin, run.data)
    material = run.material()
    validation = validation_of(screeners[-1], material.val_cubes, material.val_scans)

    @cache  # only where a chunk is missing: mining takes minutes
    def drawer() -> RegionDrawer:
        task = HybridTask(region_drawer(material, screeners), validation, hybrids[0])
        task.refresh(hybrids[0])
        return task.drawer

    chunks = -(-count // size)
    make = partial(make_chunks, drawer=drawer, size=size)
    learnt = make(folder / "learnt", chunks, seed=0)
    held = make(folder / "held_out", -(-chunks // HELD_OUT), seed=1)
    found, held_label = [], values_of(held, "nodule")
    for path, hybrid in zip(teachers, hybrids, strict=True):
        answers = partial(answers_of, digest=digest(path), teacher=hybrid)
        found.append(calibrated(answers(learnt), answers(held), held_label))
    label = values_of(learnt, "nodule")
    return Lessons(material, validation, teachers, hybrids, found, learnt, len(held_label), label)


def new_student(run: Run, spec: HybridSpec = STUDENT) -> HybridNetwork:
    """Return a student of that size, with the weights of the run's start if there is one.

    The start's members that read the mm of ``spec`` are taken, and `shortened`.
    """
    torch.manual_seed(run.seed)
    if not run.start:
        return HybridNetwork(spec)
    return shortened(make_hybrid(run.start, spec.reads), spec.blocks, spec.depth)


def dynamic(teachers: Sequence[Teacher], label: FloatArray) -> FloatArray:
    """Return a weight of its own for each teacher and region, see `weigh`."""
    return weigh(np.stack([teacher.logits for teacher in teachers]), label)


def train_student(
    run: Run, student: HybridNetwork, lessons: Lessons,
    *, arm: str = "dynamic weights", weighed: Weigh = dynamic, teaching: Teaching | None = None,
) -> nn.Module:  # fmt: skip
    """Train a student with teachers ``weighed``; the log names them, and the ``arm``."""
    teaching = teaching or Teaching()
    ready(student, run.start, lessons.material)
    weights = weighed(lessons.teachers, lessons.label)
    soft = soft_target(lessons.teachers, weights, teaching.temperature)
    soft[np.isnan(lessons.label)] = np.nan
    task = StudentTask(lessons.chunks, soft, teaching, lessons.validation, student)
    heard = [str(path) for path, one in zip(lessons.paths, weights, strict=True) if one[0] > 0]
    return train(task, run.plan(lessons.material, decay=0.05, arm=arm, teachers=heard))
