"""The screening network's training: composed samples in, its loss, its figures on validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from imaging.volume import FloatArray, UInt8Array
from models.runtime.detection import STRIDE, Peaks, find_peaks
from models.runtime.screener import padded
from models.training.compose import Composer, cut_out
from models.training.data import NONE, Batch, Piece, draw_batches
from models.training.tiles import of_tiles, tiles

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""The false positives a scan whose mean sensitivity is the CPM."""

SAMPLES_A_CUT = 3
"""One of three samples comes again, cut out: a batch has four."""


def make_targets(sample: Piece) -> Batch:
    """Return maps of a sample, whose sides are multiples of `STRIDE`, on the network's grid.

    Each is float32 ``(z, y, x)``:
        heat: 1 at a nodule's centre, falling off as a Gaussian.
        weight: 0 at ignored marks, else 1.
        box: ``(4, z, y, x)``: offsets in cells and ln of the diameter, where ``near`` is not 0.
        near: the weight of the box terms: the heat where it is above one half.
        share: the share of the cell that is nodule.
    """
    grid = tuple(n // STRIDE for n in sample.voxels.shape)
    heat, weight = np.zeros(grid, np.float32), np.ones(grid, np.float32)
    box = np.zeros((4, *grid), np.float32)
    for mark in sample.ignored:
        # what heat an ignored mark gets is neither right nor wrong
        radius = max(mark[3] / 2, 4.0) + 2.0
        part, _, away = _cells_near(mark, radius, grid)
        weight[part][away < radius] = 0
    for mark in sample.nodules:
        # the nearest cells are 1 even if the centre lies between; of two nodules the nearer wins
        diameter, sigma = mark[3], float(np.clip(mark[3] / 4, 2.0, 8.0))
        part, offset, away = _cells_near(mark, 4 * sigma, grid)
        if not away.size:
            continue
        bump = np.exp(-(away**2) / (2 * sigma**2))
        bump[away <= max(float(away.min()), 0.15 * diameter)] = 1.0
        # offsets and diameter of a cell are those of the nodule that gives it most heat
        mine = bump > heat[part]
        heat[part] = np.maximum(heat[part], bump)
        weight[part][bump > 0.5] = 1
        inner = box[(slice(None), *part)]
        inner[:3, mine] = (offset / STRIDE)[:, mine]
        inner[3, mine] = np.log(diameter)
    near = np.where(heat > 0.5, heat, 0).astype(np.float32)
    maps = {"heat": heat, "weight": weight, "box": box, "near": near, "share": _shares(sample.mask)}
    return {name: torch.from_numpy(one) for name, one in maps.items()}


def _cells_near(
    mark: FloatArray, reach: float, grid: tuple[int, ...]
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """Return the cells around a mark, and the mark's offset from each of them.

    They are the slices of a box that reaches ``reach`` voxels or a cell further, the offsets
    ``(3, z, y, x)`` and their lengths ``(z, y, x)``, in voxels.
    """
    low = np.floor((mark[:3] - reach) / STRIDE).clip(0, grid).astype(int)
    high = (np.ceil((mark[:3] + reach) / STRIDE) + 1).clip(0, grid).astype(int)
    part = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    centres = [(np.arange(a, b, dtype=np.float32) + 0.5) * STRIDE - 0.5
               for a, b in zip(low, high, strict=True)]  # fmt: skip
    apart = [np.float32(m) - c for m, c in zip(mark, centres, strict=False)]
    offset = np.stack(np.meshgrid(*apart, indexing="ij"))
    return part, offset, np.sqrt(np.square(offset).sum(0))


def _shares(mask: UInt8Array) -> np.ndarray:
    """Return the mean of the mask in each cell, 0 to 1, float32."""
    z, y, x = (n // STRIDE for n in mask.shape)
    # along z first, with each column as a column of one image, then slice by slice
    deep = cv2.resize(mask.reshape(len(mask), -1), (mask[0].size, z), interpolation=cv2.INTER_AREA)
    planes = deep.reshape(z, *mask.shape[1:])
    small = [cv2.resize(plane, (x, y), interpolation=cv2.INTER_AREA) for plane in planes]
    return np.stack(small).astype(np.float32) / 255


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

    ``maps`` is ``(n, 6, z, y, x)`` as the network gives in training; ``targets`` holds what
    `make_targets` gives, stacked, and may hold ``cut`` ``(n,)``: which sample is the one before
    it, cut out. Both must give a nodule the same logit.
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


@dataclass
class ScreeningTask:
    """Trains on ``composer``'s samples; measures on ``cubes`` and ``scans`` of other patients.

    A batch holds a sample and the same sample cut out: both must give the nodules one logit.
    """

    composer: Composer
    cubes: Sequence[Piece]
    scans: Sequence[Piece]
    network: nn.Module
    batch: int = 4
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and the maps of `make_targets`, without end.

        ``cut`` ``(n,)`` tells which sample is the one before it, cut out.
        """
        return draw_batches(
            partial(_samples, self.composer), self.batch, workers=self.workers, seed=seed
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of `screening_loss`."""
        maps = network(batch["voxels"].float() / 255)
        return screening_loss(maps.float(), batch)

    def refresh(self, network: nn.Module) -> None:
        """Mine hard negatives: the training scans are drawn more often where they lie."""
        hard = []
        for scan in self.composer.scans:
            # no copy of a scan has a name; of each scan the 60 strongest at most
            false = apart(peaks_of(network, scan.voxels), scan, 5, -4.0) if scan.name else None
            hard.append(false.index_zyx[:60] if false else NONE[:, :3])
        self.composer = replace(self.composer, hard=hard)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return sensitivity at 1, 2, 4 and 8 false positives a scan, and the CPM.

        Nodules are those of the cubes; the false positives are read in tiles cut as these are.
        """
        return summary(*self.scores(network), len(self.scans))

    def scores(self, network: nn.Module) -> tuple[FloatArray, FloatArray]:
        """Return the logit of each cube's nodule, and of each false positive in equal context."""
        # of each cube the best candidate on its own nodule, its first mark
        each = peaks_of_each(network, [cube.voxels for cube in self.cubes])
        found = [
            best_logit(peaks, cube.nodules[0]) for cube, peaks in zip(self.cubes, each, strict=True)
        ]
        false = [apart(peaks_of_tiles(network, one.voxels), one, 5).logit for one in self.scans]
        return np.array(found), np.concatenate(false)


def hits(found: FloatArray, false: FloatArray, scans: int) -> FloatArray:
    """Return which nodules are found at each of the `RATES`: 0 or 1, ``(nodules, rates)``.

    Given are the logits of nodules, -inf without a peak, and of the false positives of ``scans``.
    The threshold is the lowest at which no more false positives than the rate's are left.
    """
    ranked = np.append(np.sort(false)[::-1], -np.inf)
    least = ranked[[min(int(rate * scans), len(false)) for rate in RATES]]
    return np.asarray(found[:, None] > least, np.float64)


def summary(found: FloatArray, false: FloatArray, scans: int) -> dict[str, float]:
    """Return the CPM, and the sensitivities at 1, 2, 4 and 8 false positives a scan, by `hits`."""
    at = hits(found, false, scans).mean(0).tolist()
    named = {f"at_{rate:g}": value for rate, value in zip(RATES, at, strict=True) if rate >= 1}
    return {"cpm": float(np.mean(at)), **named}


def _samples(composer: Composer, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield samples; one in three is followed by itself, cut out around a nodule."""
    while True:
        for number in range(SAMPLES_A_CUT):
            sample = composer.draw(rng)
            yield _batched(sample, cut=False)
            if number == 0:
                yield _batched(cut_out(sample, rng), cut=True)


def _batched(sample: Piece, *, cut: bool) -> Batch:
    return {
        "voxels": torch.from_numpy(sample.voxels.copy())[None],
        "cut": torch.tensor(cut),
        **make_targets(sample),
    }


def peaks_of(network: nn.Module, voxels: UInt8Array) -> Peaks:
    """Return the torch network's peaks in a box, which is padded as the runtime pads it."""
    return peaks_of_each(network, [voxels])[0]


def peaks_of_each(network: nn.Module, boxes: Sequence[UInt8Array], batch: int = 8) -> list[Peaks]:
    """Return the peaks of boxes; neighbours of one shape are read together."""
    device, found = next(network.parameters()).device, list[Peaks]()
    while len(found) < len(boxes):
        left = boxes[len(found) : len(found) + batch]
        alike = [box.shape == left[0].shape for box in left]
        part = left[: alike.index(False) if False in alike else len(left)]
        x = torch.from_numpy(np.stack([padded(box) for box in part])).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            maps = network(x[:, None].float() / 255).float().cpu().numpy()[:, :5]
        found += [find_peaks(one, least_logit=-7.0, most=200) for one in maps]
    return found


def peaks_of_tiles(network: nn.Module, voxels: UInt8Array) -> Peaks:
    """Return the peaks of a box that is read as tiles cut as the cubes are."""
    boxes = [np.ascontiguousarray(voxels[place]) for place, _ in tiles(voxels.shape)]
    return of_tiles(voxels.shape, peaks_of_each(network, boxes), 200)


def best_logit(peaks: Peaks, nodule: FloatArray) -> float:
    """Return the highest logit within half a diameter of a nodule, -inf if none."""
    away = np.linalg.norm(peaks.index_zyx - nodule[:3], axis=1)
    return float(peaks.logit[away < nodule[3] / 2].max(initial=-np.inf))


def hit_of(nodule: FloatArray, candidates: FloatArray) -> FloatArray | None:
    """Return the candidate ``(3,)`` that is nearest to a nodule and within half its diameter."""
    away = np.linalg.norm(candidates - nodule[:3], axis=1)
    hit = len(away) > 0 and away.min() < nodule[3] / 2
    return np.asarray(candidates[int(away.argmin())]) if hit else None


def place_of(nodule: FloatArray, candidates: FloatArray) -> FloatArray:
    """Return the candidate that hit a nodule; of a miss, the nodule's middle ``(3,)``."""
    hit = hit_of(nodule, candidates)
    return nodule[:3] if hit is None else hit


def apart(peaks: Peaks, scan: Piece, margin: float, above: float = -np.inf) -> Peaks:
    """Return the peaks above a logit and further than ``margin`` from the rims of all marks."""
    marks = np.concatenate([scan.nodules, scan.ignored])
    away = np.linalg.norm(peaks.index_zyx[:, None] - marks[:, :3], axis=2)
    clear = (away > marks[:, 3] / 2 + margin).all(1)
    return peaks.at(clear & (peaks.logit > above))
