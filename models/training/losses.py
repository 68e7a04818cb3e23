"""The losses of the networks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from models.networks.hybrid import Answers

SHARE_WEIGHT = 0.3
BOX_WEIGHT = 0.5

TEXTURE_WEIGHTS = (3.0, 3.0, 1.0)
"""Nine of ten nodules are solid."""


def heat_loss(logit: torch.Tensor, heat: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Penalty-reduced focal loss over all cells, for each nodule (scalar).

    Source: CenterNet (Zhou et al., arXiv:1904.07850, eq. 1) with alpha 2 and beta 4, after
    CornerNet. ``logit``, ``heat`` and ``weight`` are ``(n, z, y, x)``.
    """
    chance = torch.sigmoid(logit)
    hit = heat >= 1
    gain = F.logsigmoid(logit) * (1 - chance) ** 2 * hit
    cost = F.logsigmoid(-logit) * chance**2 * (1 - heat) ** 4 * ~hit
    return -((gain + cost) * weight).sum() / hit.sum().clamp(min=1)


def screening_loss(maps: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The terms of the screening loss, to be added up.

    ``maps`` is ``(n, 6, z, y, x)`` as the network gives in training; ``targets`` holds the
    fields of `models.training.targets.Targets`, stacked.
    """
    near = targets["near"]
    box = F.smooth_l1_loss(maps[:, 1:5], targets["box"], reduction="none", beta=0.3).sum(1)
    share = F.binary_cross_entropy_with_logits(maps[:, 5], targets["share"], reduction="none")
    emphasis = (1 + 20 * targets["share"]) * targets["weight"]
    return {
        "heat": heat_loss(maps[:, 0], targets["heat"], targets["weight"]),
        "box": BOX_WEIGHT * (box * near).sum() / near.sum().clamp(min=1),
        "share": SHARE_WEIGHT * 10 * (share * emphasis).mean(),
    }


def hybrid_loss(answers: Answers, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The terms of the hybrid's loss, to be added up.

    ``batch`` holds ``nodule`` (0 or 1), ``log_diameter``, ``malignancy`` (in [0, 1], NaN unknown),
    ``texture`` (class, -1 unknown), each ``(n,)``, and ``mask`` ``(n, 1, z, y, x)`` in [0, 1].
    Diameter, malignancy and texture are learnt where there is a nodule.
    """
    nodule = batch["nodule"]
    size = F.smooth_l1_loss(
        answers.log_diameter[:, 0], batch["log_diameter"], reduction="none", beta=0.3
    )
    rated = torch.isfinite(batch["malignancy"])
    suspicion = F.binary_cross_entropy_with_logits(
        answers.malignancy[rated, 0], batch["malignancy"][rated], reduction="sum"
    )
    seen = batch["texture"] >= 0
    texture = F.cross_entropy(
        answers.texture, batch["texture"], ignore_index=-1, reduction="sum",
        weight=answers.texture.new_tensor(TEXTURE_WEIGHTS),
    )  # fmt: skip
    return {
        "nodule": F.binary_cross_entropy_with_logits(answers.logit[:, 0], nodule * 0.98 + 0.01),
        "size": 0.2 * (size * nodule).sum() / nodule.sum().clamp(min=1),
        "malignancy": 0.1 * suspicion / rated.sum().clamp(min=1),
        "texture": 0.1 * texture / seen.sum().clamp(min=1),
        **mask_loss(answers.mask, batch["mask"], nodule),
    }


def mask_loss(
    logit: torch.Tensor, mask: torch.Tensor, nodule: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Cross-entropy over all voxels and soft Dice (Milletari et al., arXiv:1606.04797) of nodules.

    ``logit`` and ``mask`` are ``(n, 1, z, y, x)``, ``nodule`` ``(n,)``.
    """
    cell = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    emphasis = 1 + 10 * mask
    chance = torch.sigmoid(logit)
    both = (chance * mask).sum((1, 2, 3, 4))
    dice = (2 * both + 1) / (chance.sum((1, 2, 3, 4)) + mask.sum((1, 2, 3, 4)) + 1)
    return {
        "voxel": (cell * emphasis).mean(),
        "dice": 0.2 * ((1 - dice) * nodule).sum() / nodule.sum().clamp(min=1),
    }
