"""One student: a screening network trained on samples, with or without a soft target.

The loss is the screening network's own (`models.training.screening.screening_loss`) plus
w t^2 times the cross-entropy of its score at temperature t against the soft target, at each place
that the teachers read (Hinton et al., arXiv:1503.02531, section 2.1 for t^2). The score is the
highest heat logit of the place's cell and its neighbours, which a peak there would have.
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
from models.distillation.teachers import EACH, load_sample
from models.runtime.detection import STRIDE
from models.training.data import Batch, draw_batches, flip
from models.training.loop import fine_tune
from models.training.screening import make_targets, screening_loss


@dataclass(frozen=True)
class Teaching:
    """Training parameters, the same for all students that are compared.

    ``weight`` is that of the soft target in the loss, ``temperature`` that of the distillation.
    """

    steps: int = 200
    weight: float = 0.5
    temperature: float = 2.0
    batch: int = 4
    workers: int = 2


def train_student(
    network: nn.Module, samples: Sequence[Path], soft: Sequence[FloatArray] | None,
    teaching: Teaching, rate: float, seed: int,
) -> nn.Module:  # fmt: skip
    """Train ``teaching.steps`` and return the averaged network.

    ``soft`` holds the target at each place of each sample.
    """
    torch.manual_seed(seed)
    draw = partial(_samples, tuple(samples), soft)
    batches = draw_batches(draw, teaching.batch, workers=teaching.workers, seed=seed)
    losses = partial(losses_of, teaching=teaching)
    return fine_tune(network, batches, losses, steps=teaching.steps, rate=rate)


def losses_of(network: nn.Module, batch: Batch, teaching: Teaching) -> dict[str, torch.Tensor]:
    """Return the terms of the screening network's own loss, and that of what is taught."""
    maps = network(batch["voxels"].float() / 255).float()
    t, taught = teaching.temperature, batch["taught"]
    heat = score_at(maps, batch["cells"]) / t
    apart = F.binary_cross_entropy_with_logits(heat, batch["soft"], reduction="none")
    soft = teaching.weight * t**2 * (apart * taught).sum() / taught.sum().clamp(min=1)
    return {**screening_loss(maps, batch), "soft": soft}


def score_at(maps: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the score at cells ``(n, k, 3)`` of maps ``(n, c, z, y, x)``: ``(n, k)``."""
    # a peak may lie one cell off the place: the highest of the neighbours is its score
    near = F.max_pool3d(maps[:, :1], 3, stride=1, padding=1)[:, 0]
    sample = torch.arange(len(maps), device=maps.device)[:, None]
    z, y, x = cells.unbind(2)
    return near[sample, z, y, x]


def _samples(
    samples: Sequence[Path], soft: Sequence[FloatArray] | None, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield the samples in random order, without end; every one before any comes again."""
    while True:
        for number in rng.permutation(len(samples)):
            yield sample_of(samples[number], None if soft is None else soft[number], rng)


def sample_of(path: Path, soft: FloatArray | None, rng: np.random.Generator) -> Batch:
    """Return a sample, mirrored at random, as `losses_of` takes it, without batch axis."""
    drawn = load_sample(path)
    count = len(drawn.places)
    # the places are moved as marks of no size, behind the nodules
    marks = np.concatenate([drawn.places, np.zeros((count, 1))], axis=1)
    sample = drawn.sample
    sample = flip(replace(sample, nodules=np.concatenate([sample.nodules, marks])), rng)
    known = len(sample.nodules) - count
    places, sample = sample.nodules[known:, :3], replace(sample, nodules=sample.nodules[:known])
    cells, wanted, taught = np.zeros((2 * EACH, 3), int), np.zeros(2 * EACH), np.zeros(2 * EACH)
    limit = np.array(sample.voxels.shape) // STRIDE - 1
    cells[:count] = np.clip(np.floor((places + 0.5) / STRIDE), 0, limit)
    if soft is not None:
        wanted[:count], taught[:count] = soft, 1
    return {
        "voxels": torch.from_numpy(np.ascontiguousarray(sample.voxels))[None],
        "cells": torch.from_numpy(cells),
        "soft": torch.tensor(wanted, dtype=torch.float32),
        "taught": torch.tensor(taught, dtype=torch.float32),
        **make_targets(sample),
    }
