"""Training targets of the screening network on its own grid, and the losses of both networks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from models.networks.hybrid import Answers
from models.runtime.detection import STRIDE
from models.training.data import Piece

FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Targets:
    """Maps of one sample on the network's grid ``(z, y, x)``.

    Attributes:
        heat: 1 at a nodule's centre, falling off as a Gaussian.
        weight: 0 at ignored marks, else 1.
        box: ``(4, z, y, x)``: offsets in cells and ln of the diameter, where ``near`` is not 0.
        near: the weight of the box terms: the heat where it is above one half.
        share: the share of the cell that is nodule.
    """

    heat: FloatMap
    weight: FloatMap
    box: FloatMap
    near: FloatMap
    share: FloatMap


def make_targets(sample: Piece) -> Targets:
    """Return the targets of a sample whose sides are multiples of `STRIDE`."""
    grid = tuple(n // STRIDE for n in sample.voxels.shape)
    heat, weight = np.zeros(grid, np.float32), np.ones(grid, np.float32)
    box = np.zeros((4, *grid), np.float32)
    centres = (np.indices(grid) + 0.5) * STRIDE - 0.5  # of the cells, (3, z, y, x) in voxels
    for mark in sample.ignored:
        # what heat an ignored mark gets is neither right nor wrong
        away, diameter = np.sqrt(((centres - mark[:3, None, None, None]) ** 2).sum(0)), mark[3]
        weight[away < max(diameter / 2, 4.0) + 2.0] = 0
    for mark in sample.nodules:
        offset, diameter = mark[:3, None, None, None] - centres, mark[3]
        away = np.sqrt((offset**2).sum(0))
        # the nearest cells are 1 even if the centre lies between; of two nodules the nearer wins
        sigma = float(np.clip(diameter / 4, 2.0, 8.0))
        bump = np.exp(-(away**2) / (2 * sigma**2)).astype(np.float32)
        bump[away <= max(float(away.min()), 0.15 * diameter)] = 1.0
        # offsets and diameter of a cell are those of the nodule that gives it most heat
        mine = bump > heat
        heat = np.maximum(heat, bump)
        weight[bump > 0.5] = 1
        box[:3, mine] = (offset / STRIDE)[:, mine]
        box[3, mine] = np.log(diameter)
    near = np.where(heat > 0.5, heat, 0).astype(np.float32)
    # the mean of the mask in each cell of STRIDE voxels a side
    z, y, x = grid
    blocks = sample.mask.reshape(z, STRIDE, y, STRIDE, x, STRIDE)
    share = blocks.mean((1, 3, 5), dtype=np.float32) / 255
    return Targets(heat, weight, box, near, np.asarray(share, np.float32))


def heat_loss(logit: torch.Tensor, heat: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the penalty-reduced focal loss over all cells, per nodule (scalar).

    Source: CenterNet (Zhou et al., arXiv:1904.07850, eq. 1) with alpha 2 and beta 4, after
    CornerNet. ``logit``, ``heat`` and ``weight`` are ``(n, z, y, x)``.
    """
    chance = torch.sigmoid(logit)
    hit = heat >= 1
    # cells at a centre should be hot, all others cold; confident cells count little, and cells
    # near a centre are hardly punished for their heat
    gain = F.logsigmoid(logit) * (1 - chance) ** 2 * hit
    cost = F.logsigmoid(-logit) * chance**2 * (1 - heat) ** 4 * ~hit
    return -((gain + cost) * weight).sum() / hit.sum().clamp(min=1)


def screening_loss(maps: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the terms of the screening loss, to be summed.

    ``maps`` is ``(n, 6, z, y, x)`` as the network gives in training; ``targets`` holds the
    fields of `Targets`, stacked, and may hold ``cut`` ``(n,)``: which sample is the one before it,
    cut out. Both must give a nodule the same logit.
    """
    near = targets["near"]
    box = F.smooth_l1_loss(maps[:, 1:5], targets["box"], reduction="none", beta=0.3).sum(1)
    share = F.binary_cross_entropy_with_logits(maps[:, 5], targets["share"], reduction="none")
    # a nodule fills few of a sample's cells: without emphasis all cold would be a good answer
    emphasis = (1 + 20 * targets["share"]) * targets["weight"]
    return {
        "heat": heat_loss(maps[:, 0], targets["heat"], targets["weight"]),
        "box": 0.5 * (box * near).sum() / near.sum().clamp(min=1),
        "share": 3.0 * (share * emphasis).mean(),
        **(
            {"context": 0.3 * _change(maps[:, 0], near, targets["cut"])} if "cut" in targets else {}
        ),
    }


def _change(logit: torch.Tensor, near: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Return by how much nodules' logits differ between cut samples and those before them."""
    # each cut sample follows the one that it was cut from; cells count where both have a nodule
    second = cut.nonzero()[:, 0]
    both = torch.minimum(near[second], near[second - 1])
    change = F.smooth_l1_loss(logit[second], logit[second - 1], reduction="none", beta=0.3)
    return (change * both).sum() / both.sum().clamp(min=1)


def hybrid_loss(answers: Answers, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the terms of the hybrid's loss, to be summed.

    ``batch`` holds ``nodule`` (0 or 1, NaN not taught), ``log_diameter`` where ``sized`` is 1,
    ``malignancy`` (in [0, 1], NaN unknown), ``texture`` (class, -1 unknown), each ``(n,)``, and
    ``mask`` ``(n, 1, z, y, x)`` in [0, 1] where ``outlined`` is 1.
    """
    # each term counts the samples of which its answer is known, and is their mean; targets of 0.01
    # and 0.99 keep the network from growing certain of labels that may be wrong
    nodule = batch["nodule"]
    taught = torch.isfinite(nodule)
    answer = F.binary_cross_entropy_with_logits(
        answers.logit[taught, 0], nodule[taught] * 0.98 + 0.01, reduction="sum"
    )
    size = F.smooth_l1_loss(
        answers.log_diameter[:, 0], batch["log_diameter"], reduction="none", beta=0.3
    )
    sized = batch["sized"]
    rated = torch.isfinite(batch["malignancy"])
    malignancy = F.binary_cross_entropy_with_logits(
        answers.malignancy[rated, 0], batch["malignancy"][rated], reduction="sum"
    )
    seen = batch["texture"] >= 0
    texture = F.cross_entropy(
        answers.texture, batch["texture"], ignore_index=-1, reduction="sum",
        weight=answers.texture.new_tensor((3.0, 3.0, 1.0)),  # nine of ten nodules are solid
    )  # fmt: skip
    return {
        "nodule": answer / taught.sum().clamp(min=1),
        "size": 0.2 * (size * sized).sum() / sized.sum().clamp(min=1),
        "malignancy": 0.1 * malignancy / rated.sum().clamp(min=1),
        "texture": 0.1 * texture / seen.sum().clamp(min=1),
        **(
            mask_loss(answers.mask, batch["mask"], batch["outlined"])
            if answers.mask.numel()
            else {}
        ),
    }


def mask_loss(
    logit: torch.Tensor, mask: torch.Tensor, outlined: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return cross-entropy over all voxels and soft Dice (Milletari et al., arXiv:1606.04797).

    ``logit`` and ``mask`` are ``(n, 1, z, y, x)``; only regions where ``outlined`` ``(n,)`` is 1
    count.
    """
    known = outlined > 0
    logit, mask = logit[known], mask[known]
    count = known.sum().clamp(min=1)
    cell = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    emphasis = 1 + 10 * mask
    chance = torch.sigmoid(logit)
    both = (chance * mask).sum((1, 2, 3, 4))
    dice = (2 * both + 1) / (chance.sum((1, 2, 3, 4)) + mask.sum((1, 2, 3, 4)) + 1)
    voxels = max(mask[0].numel() if len(mask) else 1, 1)
    return {
        "voxel": (cell * emphasis).sum() / (count * voxels),
        "dice": 0.2 * (1 - dice).sum() / count,
    }
