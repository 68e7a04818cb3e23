"""Distillation: hybrids, the teachers, make one small hybrid, the student: the second reader.

A teacher's answer is its logit. Teachers cost many times what a student costs, so regions are drawn
and read once, and kept beside the runs for all students that come from the same teachers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

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

HELD_OUT = 10
"""One chunk of regions is held out for each ten: teachers are calibrated on these."""

Weigh = Callable[[Sequence[Teacher], FloatArray], FloatArray]
"""Returns each teacher's weight in each region ``(teachers, n)``; labels are ``(n,)``."""


def dynamic(teachers: Sequence[Teacher], label: FloatArray) -> FloatArray:
    """Return a weight of its own for each teacher and region, see `weigh`."""
    return weigh(np.stack([teacher.logits for teacher in teachers]), label)


@dataclass(frozen=True)
class Distillation(Run):
    """The options of a distillation. Each part is read or made where it is first used.

    A student begins from the weights ``start``, as far as members read the mm of ``spec``, and
    `shortened` to its blocks and depth; without a start it has this size. ``teachers`` are weights
    of hybrids; the first finds the hardest candidates of the networks ``screening`` in whole scans.
    ``count`` regions or more are learnt from.
    """

    screening: tuple[Path, ...] = ()
    teachers: tuple[Path, ...] = ()
    count: int = 8192
    spec: HybridSpec = field(
        default_factory=lambda: HybridSpec(reads=(32, 48), blocks=(2, 3, 2), depth=2)
    )
    teaching: Teaching = field(default_factory=Teaching)
    chunk: int = CHUNK

    def student(
        self, run: Run | None = None, arm: str = "dynamic weights", weighed: Weigh = dynamic
    ) -> nn.Module:
        """Train the student of a run, by default this one, with teachers ``weighed``.

        Weights that are all NaN are those of no teacher; ``arm`` says so in the log.

        Raises:
            UnfitArtifact: weights do not fit, or a folder holds another run or regions of other
                networks.
        """
        run = run or self
        torch.manual_seed(run.seed)
        # weights that do not fit end it before anything is written
        network, _ = self.new(), (self.hybrids, self.screeners)
        ready(network, self.start, self.known)
        teachers, label = self.answers
        weights = weighed(teachers, label)
        soft = soft_target(teachers, weights, self.teaching.temperature)
        soft[np.isnan(label)] = np.nan
        task = StudentTask(self.chunks[0], soft, self.teaching, self.validation, network)
        heard = [str(path) for path, one in zip(self.teachers, weights, strict=True) if one[0] > 0]
        return train(task, run.plan(self.known, decay=0.05, arm=arm, teachers=heard))

    def new(self) -> HybridNetwork:
        """Return the student before its training."""
        if not self.start:
            return HybridNetwork(self.spec)
        start = make_hybrid(self.start, self.spec.reads)
        return shortened(start, self.spec.blocks, self.spec.depth)

    @cached_property
    def known(self) -> Material:
        """What is trained and measured on."""
        return self.material()

    @cached_property
    def screeners(self) -> list[nn.Module]:
        """The networks whose candidates are read."""
        return [make_screening(path).eval() for path in self.screening]

    @cached_property
    def hybrids(self) -> list[nn.Module]:
        """The networks of the teachers."""
        return [placed(make_hybrid([path]).eval()) for path in self.teachers]

    @cached_property
    def validation(self) -> Validation:
        """What a student is measured on."""
        return validation_of(self.screeners[-1], self.known.val_cubes, self.known.val_scans)

    @cached_property
    def chunks(self) -> tuple[list[Path], list[Path]]:
        """The files of the regions to learn from, and of those that are held out."""
        folder = self.out.parent / "regions"
        check_plan(folder, self.origin, self.data)
        count = -(-self.count // self.chunk)
        make = partial(make_chunks, drawer=lambda: self._drawer, size=self.chunk)
        learnt = make(folder / "learnt", count, seed=0)
        return learnt, make(folder / "held_out", -(-count // HELD_OUT), seed=1)

    @property
    def origin(self) -> dict[str, Any]:
        """What the regions depend on."""
        return {"miner": self.teachers[0], "screening": self.screening, "chunk": self.chunk}

    @cached_property
    def _drawer(self) -> RegionDrawer:
        drawer = region_drawer(self.known, self.screeners)
        task = HybridTask(drawer, self.validation, self.hybrids[0])
        task.refresh(self.hybrids[0])
        return task.drawer

    @cached_property
    def answers(self) -> tuple[list[Teacher], FloatArray]:
        """The teachers, and the label of each region to learn from ``(n,)``, NaN if not taught."""
        found, held_label = [], values_of(self.chunks[1], "nodule")
        for path, hybrid in zip(self.teachers, self.hybrids, strict=True):
            read = partial(answers_of, digest=digest(path), teacher=hybrid)
            learnt, held = map(read, self.chunks)
            found.append(calibrated(learnt, held, held_label))
        return found, values_of(self.chunks[0], "nodule")
