"""One student: a screening network trained on the pool, with or without a soft target.

The loss is (1 - w) times the screening network's own (`models.training.targets.screening_loss`)
plus w t^2 times the cross-entropy of its score at temperature t against the soft target (Hinton
et al., arXiv:1503.02531, section 2.1 for t^2). The score is the highest heat around the region's
middle, as in whole scans.
"""

from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from imaging.volume import FloatArray, UInt8Array
from models.distillation.pool import Pool
from models.distillation.scores import Scores
from models.runtime.detection import STRIDE
from models.training.augment import turned
from models.training.data import Batch, draw_batches
from models.training.loop import State, average_of, channels_last, descend, schedule
from models.training.targets import Targets, make_targets, screening_loss

REACH = 1
"""Cells on either side of the middle that give a region's score: 8 mm in all."""


@dataclass(frozen=True)
class Teaching:
    """Training parameters, the same for all students that are compared.

    ``weight`` is the soft target's share of the loss, ``temperature`` that of the distillation.
    """

    steps: int = 0
    weight: float = 0.5
    temperature: float = 2.0
    rate: float = 3e-4
    decay: float = 0.02
    warm_up: float = 0.05
    average: float = 0.98
    batch: int = 32
    workers: int = 2


def train_student(
    network: nn.Module, pool: Pool, soft: FloatArray | None, teaching: Teaching, seed: int
) -> nn.Module:
    """Train ``teaching.steps`` and return the averaged network; ``soft`` is a target per region."""
    torch.manual_seed(seed)
    if soft is None:
        teaching = replace(teaching, weight=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = channels_last(network.to(device)).train()
    optimizer = torch.optim.AdamW(network.parameters(), teaching.rate, weight_decay=teaching.decay)
    state = State(network, average_of(network, teaching.average), optimizer)
    draw = partial(_sample, pool, np.zeros(len(pool.voxels)) if soft is None else soft)
    batches = draw_batches(draw, teaching.batch, workers=teaching.workers, seed=seed)
    for step in track(range(teaching.steps), f"student, seed {seed}"):
        batch = {name: value.to(device) for name, value in next(batches).items()}
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(network, batch, teaching)
        factor = schedule(step / teaching.steps, teaching.warm_up, flat=teaching.warm_up)
        descend(state, loss, teaching.rate * factor)
    student: nn.Module = state.averaged.module
    return student.eval()


def scores_of(network: nn.Module, pool: Pool) -> Scores:
    """Return the student's scores of the validation regions, in FP32, where logits do not tie."""
    return Scores(**{name: _read(network, part) for name, part in pool.validation.items()})


def middle_heat(maps: torch.Tensor) -> torch.Tensor:
    """Return the score of each region ``(n,)``: the highest heat logit around its middle."""
    z, y, x = (slice(n // 2 - REACH, n // 2 + REACH) for n in maps.shape[2:])
    return maps[:, 0, z, y, x].amax((1, 2, 3))


def _loss(network: nn.Module, batch: Batch, teaching: Teaching) -> torch.Tensor:
    maps = network(batch["voxels"].float() / 255).float()
    own = torch.stack(list(screening_loss(maps, batch).values())).sum()
    if not teaching.weight:
        return own
    t = teaching.temperature
    taught = F.binary_cross_entropy_with_logits(middle_heat(maps) / t, batch["soft"])
    return (1 - teaching.weight) * own + teaching.weight * t**2 * taught


def _sample(pool: Pool, soft: FloatArray, rng: np.random.Generator) -> Batch:
    number = int(rng.integers(pool.learnt))
    piece = turned(pool.piece(number), rng)
    targets = _label_zone(make_targets(piece))
    return {
        "voxels": torch.from_numpy(np.ascontiguousarray(piece.voxels))[None],
        "soft": torch.tensor(soft[number], dtype=torch.float32),
        **{f.name: torch.from_numpy(getattr(targets, f.name)) for f in fields(Targets)},
    }


def _label_zone(targets: Targets) -> Targets:
    """Set the weight to 0 beyond 16 mm from the middle and at neighbours without a mark."""
    lines = [(np.arange(n) - (n - 1) / 2) * STRIDE for n in targets.heat.shape]
    z, y, x = np.meshgrid(*lines, indexing="ij")
    far = z**2 + y**2 + x**2 > 16**2
    neighbour = (targets.share > 0.1) & (targets.heat < 0.5)
    return replace(targets, weight=np.where(far | neighbour, 0, targets.weight))


def _read(network: nn.Module, regions: UInt8Array) -> FloatArray:
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(regions), 32):
            part = torch.from_numpy(regions[start : start + 32]).to(device)[:, None].float() / 255
            found.append(middle_heat(network(part)).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)
