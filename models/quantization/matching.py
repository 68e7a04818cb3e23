"""Fine-tuning to answer as another network does: what quantised networks are trained by.

Labels are not needed: the rounded network shall not be better than its original, only the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.hybrid import Answers
from models.training.data import Batch
from models.training.loop import Task

DOUBT = 3.0
"""Heat logits this far below zero count half: what lies far below is never looked at."""


@dataclass
class MatchTask:
    """Trains ``network`` to give what ``reference`` gives for the voxels of ``base``'s batches."""

    base: Task
    reference: nn.Module
    network: nn.Module

    def batches(self, seed: int) -> Iterator[Batch]:
        """Those of the base, the voxels alone."""
        return ({"voxels": batch["voxels"]} for batch in self.base.batches(seed))

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """How far the answers are apart, by what they are of."""
        unit = batch["voxels"].float() / 255
        with torch.no_grad():
            wanted = self.reference(unit)
        return match_loss(network(unit), wanted)

    def refresh(self, network: nn.Module) -> None:
        """As the base does."""
        self.base.refresh(network)

    def judge(self, network: nn.Module) -> dict[str, float]:
        """The base's figures."""
        return self.base.judge(network)


def match_loss(found: Any, wanted: Any) -> dict[str, torch.Tensor]:
    """The terms for maps of a screening network, or for `Answers` of a hybrid."""
    if isinstance(wanted, Answers):
        return _answers_loss(Answers(*(out.float() for out in found)), wanted)
    return _maps_loss(found.float(), wanted.float())


def _maps_loss(maps: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heat where it could matter, place and diameter where there is heat."""
    heat, aim = maps[:, 0], wanted[:, 0]
    could = torch.sigmoid(aim + DOUBT)
    likely = torch.sigmoid(aim)
    place = F.smooth_l1_loss(maps[:, 1:], wanted[:, 1:], reduction="none", beta=0.1).sum(1)
    away = F.smooth_l1_loss(heat, aim, reduction="none", beta=0.2)
    return {
        "heat": (away * could).sum() / could.sum().clamp(min=1e-3),
        "place": (place * likely).sum() / likely.sum().clamp(min=1e-3),
    }


def _answers_loss(found: Answers, wanted: Answers) -> dict[str, torch.Tensor]:
    numbers = {
        name: F.smooth_l1_loss(getattr(found, name), getattr(wanted, name).float(), beta=0.2)
        for name in ("logit", "log_diameter", "malignancy", "texture")
    }
    mask = F.binary_cross_entropy_with_logits(found.mask, torch.sigmoid(wanted.mask.float()))
    return {**numbers, "mask": mask}
