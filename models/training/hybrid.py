"""The hybrid network's training: its loss, and its figures on validation candidates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from imaging.roi import ROI_SHAPE, cut_roi
from imaging.volume import FloatArray, UInt8Array
from models.networks.hybrid import Answers, HybridNetwork
from models.training.data import NONE, Batch, Piece, draw_batches
from models.training.regions import MIN_LOGIT, RegionDrawer, as_sample
from models.training.screening import (
    apart,
    best_logit,
    peaks_of_each,
    peaks_of_tiles,
    place_of,
    summary,
)
from models.training.tiles import tile_around

MINED = 40
"""The worst errors of the network in each whole scan that later samples show more often."""

EDGE_WEIGHT = 0.3
"""Of the screening network's logit in the figures of both, which hardly change up to a half."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Regions of nodules and of false positives in equal context, with the edge's logits.

    The logit of a nodule that the edge does not propose is -inf, whatever reads it. ``scans`` is
    the number of whole scans that the false positives come from.
    """

    nodules: UInt8Array
    nodule_logit: FloatArray
    false_positives: UInt8Array
    false_positive_logit: FloatArray
    scans: int

    def scored(self, network: nn.Module) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Return the logits of nodules and of false positives: of the network, the edge, both."""
        nodule, other = (logits(network, r) for r in (self.nodules, self.false_positives))
        nodule[np.isneginf(self.nodule_logit)] = -np.inf  # no reader mends what is not sent
        return {
            "alone": (nodule, other),
            "both": (
                EDGE_WEIGHT * self.nodule_logit + (1 - EDGE_WEIGHT) * nodule,
                EDGE_WEIGHT * self.false_positive_logit + (1 - EDGE_WEIGHT) * other,
            ),
            "edge": (self.nodule_logit, self.false_positive_logit),
        }


@dataclass
class HybridTask:
    """Trains on ``drawer``'s regions; measures on regions of other patients."""

    drawer: RegionDrawer
    validation: Validation
    network: nn.Module
    batch: int = 24
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and what `hybrid_loss` compares with."""
        return draw_batches(
            partial(_samples, self.drawer), self.batch, workers=self.workers, seed=seed
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of `hybrid_loss`, each the mean over the members."""
        return losses_of_members(network, batch, hybrid_loss)

    def refresh(self, network: nn.Module) -> None:
        """Mine the network's own errors among the screening network's candidates in whole scans."""
        composer, hard = self.drawer.composer, []
        # those that this network, not the screening ones, finds most like a nodule
        for scan, each in zip(composer.scans, zip(*self.drawer.peaks, strict=True), strict=True):
            # no copy of a scan has a name, nor other anatomy
            false = [apart(of, scan, 3, MIN_LOGIT).index_zyx for of in each if scan.name]
            places = np.concatenate([NONE[:, :3], *false])
            found = logits(network, _stacked([cut_roi(scan.voxels, at) for at in places]))
            hard.append(places[np.argsort(-found)[:MINED]])
        self.drawer = replace(self.drawer, composer=replace(composer, hard=hard))

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the CPM of each of the scores, see `Validation.scored`."""
        return cpms(network, self.validation)


def losses_of_members(
    network: nn.Module, batch: Batch, loss: Callable[[Answers, Batch], Batch]
) -> Batch:
    """Return the terms of a loss, each the mean over the members.

    Every member learns by itself from the same regions; their weighted mean is what serves.
    """
    assert isinstance(network, HybridNetwork)
    terms: dict[str, list[torch.Tensor]] = {}
    voxels = batch["voxels"].float() / 255
    for member in network.listed():
        exact = Answers(*(out.float() for out in member(voxels)))
        for name, term in loss(exact, batch | {"mask": member.view(batch["mask"])}).items():
            terms.setdefault(name, []).append(term)
    return {name: torch.stack(found).mean() for name, found in terms.items()}


def cpms(network: nn.Module, held: Validation) -> dict[str, float]:
    """Return the CPM of each of the scores, see `Validation.scored`."""
    return {name: summary(*pair, held.scans)["cpm"] for name, pair in held.scored(network).items()}


def validation_of(
    screener: nn.Module, cubes: Sequence[Piece], scans: Sequence[Piece]
) -> Validation:
    """Return nodules in their cubes, and false positives of scans in tiles cut as these are."""
    each = peaks_of_each(screener, [cube.voxels for cube in cubes])
    regions, logit, others, other_logit = [], [], [], []
    for cube, peaks in zip(cubes, each, strict=True):
        regions.append(cut_roi(cube.voxels, place_of(cube.nodules[0], peaks.index_zyx)))
        logit.append(best_logit(peaks, cube.nodules[0]))
    for scan in scans:
        peaks = apart(peaks_of_tiles(screener, scan.voxels), scan, 3, MIN_LOGIT)
        other_logit += peaks.logit.tolist()
        for at in peaks.index_zyx:
            # the region ends where the cube of a nodule would: context must not tell the label
            place = tile_around(scan.voxels.shape, at)
            inside = at - np.array([one.start for one in place])
            others.append(cut_roi(scan.voxels[place], inside))
    return Validation(
        _stacked(regions), np.array(logit), _stacked(others), np.array(other_logit), len(scans)
    )


def _stacked(regions: Sequence[UInt8Array]) -> UInt8Array:
    return np.stack(regions) if regions else np.zeros((0, *ROI_SHAPE), np.uint8)


def _samples(drawer: RegionDrawer, rng: np.random.Generator) -> Iterator[Batch]:
    for region in drawer.stream(rng):
        yield as_sample(region)


def logits(network: nn.Module, regions: np.ndarray, *, batch: int = 24) -> FloatArray:
    """Return the network's logits ``(n,)`` of uint8 regions ``(n, z, y, x)``."""
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(regions), batch):
            part = torch.from_numpy(regions[start : start + batch]).to(device)
            found.append(network(part[:, None].float() / 255)[0][:, 0].float().cpu().numpy())
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)


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
    terms = {
        "nodule": answer / taught.sum().clamp(min=1),
        "size": 0.2 * (size * sized).sum() / sized.sum().clamp(min=1),
        "malignancy": 0.1 * malignancy / rated.sum().clamp(min=1),
        "texture": 0.1 * texture / seen.sum().clamp(min=1),
    }
    drawn = answers.mask.numel() > 0
    return terms | (mask_loss(answers.mask, batch["mask"], batch["outlined"]) if drawn else {})


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
