"""One student: a hybrid trained on kept regions, with or without a soft target.

The loss is the hybrid's own plus w t^2 times the cross-entropy of its logit at temperature t
against the soft target, where there is one (Hinton et al., arXiv:1503.02531, section 2.1 for t^2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from imaging.volume import FloatArray
from models.distillation.regions import region_of
from models.networks.hybrid import Answers
from models.training.data import NONE, Batch, Piece, draw_batches, flip, toned
from models.training.hybrid import Validation, cpms, hybrid_loss, losses_of_members
from models.training.regions import Region, as_sample


@dataclass(frozen=True)
class Teaching:
    """Training parameters, the same for all students that are compared.

    ``weight`` is that of the soft target in the loss, ``temperature`` that of the distillation.
    """

    weight: float = 0.5
    temperature: float = 2.0
    batch: int = 24
    workers: int = 2


@dataclass
class StudentTask:
    """Trains on the regions of ``chunks``; measures as `models.training.hybrid.HybridTask` does.

    ``soft`` is the soft target of each region ``(n,)``, NaN where there is none.
    """

    chunks: Sequence[Path]
    soft: FloatArray
    teaching: Teaching
    validation: Validation
    network: nn.Module

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield what `student_loss` compares with, and ``voxels`` uint8 ``(n, 1, z, y, x)``."""
        draw = partial(_samples, self.chunks, self.soft)
        return draw_batches(draw, self.teaching.batch, workers=self.teaching.workers, seed=seed)

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """Return the terms of `student_loss`, each the mean over the members."""
        loss = partial(student_loss, teaching=self.teaching)
        return losses_of_members(network, batch, loss)

    def refresh(self, network: nn.Module) -> None:
        """Leave the regions as they are: teachers have read these."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the CPM of each of the scores, see `Validation.scored`."""
        return cpms(network, self.validation)


def student_loss(answers: Answers, batch: Batch, teaching: Teaching) -> Batch:
    """Return the terms of the hybrid's own loss, and that of what is taught."""
    t, taught = teaching.temperature, torch.isfinite(batch["soft"])
    apart = F.binary_cross_entropy_with_logits(
        answers.logit[taught, 0] / t, batch["soft"][taught], reduction="sum"
    )
    soft = teaching.weight * t**2 * apart / taught.sum().clamp(min=1)
    return {**hybrid_loss(answers, batch), "soft": soft}


def _samples(chunks: Sequence[Path], soft: FloatArray, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the regions in random order, without end."""
    records = [np.load(path, "r") for path in chunks]  # mapped into memory
    while True:
        for number in rng.permutation(len(soft)):
            chunk, row = divmod(int(number), len(records[0]))
            region = varied(region_of(records[chunk][row]), rng)
            yield {**as_sample(region), "soft": torch.tensor(soft[number], dtype=torch.float32)}


def varied(region: Region, rng: np.random.Generator) -> Region:
    """Return a mirror image of a region at nearly its HU scale: the teachers' answer holds."""
    image = flip(Piece(region.voxels, region.mask, NONE, NONE), rng)
    voxels, mask = toned(image.voxels, rng, 0.03, 11), np.ascontiguousarray(image.mask)
    return replace(region, voxels=voxels, mask=mask)
