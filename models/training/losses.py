"""The losses of the networks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

SHARE_WEIGHT = 0.3
BOX_WEIGHT = 0.5


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


def hybrid_loss(
    outputs: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The terms of the hybrid's loss, to be added up.

    ``outputs`` are the logit ``(n, 1)``, ln of the diameter ``(n, 1)`` and the share's logit
    ``(n, 1, z, y, x)``; diameter and share are learnt where there is a nodule.
    """
    logit, log_diameter, share = outputs
    nodule = batch["nodule"]
    smooth = nodule * 0.98 + 0.01
    size = F.smooth_l1_loss(log_diameter[:, 0], batch["log_diameter"], reduction="none", beta=0.3)
    cell = F.binary_cross_entropy_with_logits(share, batch["share"], reduction="none")
    emphasis = 1 + 10 * batch["share"]
    return {
        "nodule": F.binary_cross_entropy_with_logits(logit[:, 0], smooth),
        "size": 0.2 * (size * nodule).sum() / nodule.sum().clamp(min=1),
        "share": SHARE_WEIGHT * (cell * emphasis).mean(),
    }
