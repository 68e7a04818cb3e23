"""The hybrid network's training: regions in, its loss, its figures on validation candidates.

Whether a region holds a nodule must not show in anything but its middle. So both kinds come from
the same composed samples, around the candidates that a screening network has there: a seam, a face
or a neighbouring nodule is as frequent with a nodule as without.

Ratings and outlines are known of cubes alone. Regions cut from these teach them, and not whether
there is a nodule.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from imaging.roi import ROI_SHAPE, cut_roi
from imaging.volume import FloatArray, UInt8Array
from models.networks.hybrid import Answers, HybridNetwork
from models.runtime.detection import Peaks, sigmoid
from models.training.compose import Composer, implanted
from models.training.data import (
    NONE,
    Batch,
    Cubes,
    Noise,
    Piece,
    draw_batches,
    flip,
    resize,
    resized,
    simulate_scanner,
)
from models.training.screening import (
    apart,
    best_logit,
    hit_of,
    peaks_of,
    peaks_of_each,
    peaks_of_tiles,
    place_of,
    summary,
)
from models.training.tiles import tile_around

LEAST_LOGIT = -6.0
"""Weaker candidates are not read. It is also the edge's logit of a nodule without a candidate."""

NEIGHBOURS = 0.3
"""The share of regions, with and without a nodule, into which another nodule is implanted."""

EACH = 3
"""The most nodules, and the most others, that one composed sample gives."""

MINED = 40
"""The worst errors of the network in each whole scan that later samples show more often."""

EDGE_WEIGHT = 0.65
"""Of the screening network's logit in the figures of both."""


@dataclass(frozen=True, eq=False)
class Region:
    """``voxels`` and ``mask`` uint8 ``(side, side, side)``; the diameter is 0 without a nodule.

    ``nodule`` is 1 or 0, NaN if the region does not teach it. ``malignancy`` is in [0, 1], NaN if
    unknown; ``texture`` a class of `models.runtime.second_reader.TEXTURES`, -1 if unknown.
    ``outlined``: the mask is known. ``edge``: the screening network's logit, NaN if unknown.
    """

    voxels: np.ndarray
    mask: np.ndarray
    nodule: float
    diameter_mm: float = 0.0
    malignancy: float = np.nan
    texture: int = -1
    outlined: bool = False
    edge: float = np.nan


def rated(cubes: Cubes) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return malignancy and texture of each cube's nodule, as in `Region`, each ``(n,)``.

    They come from the readers' mean ratings; 1.5 and 4.5 of malignancy count as certain.
    """
    known = np.isfinite(cubes.texture)
    classes = np.digitize(np.where(known, cubes.texture, 5.0), [2.5, 4.0])
    return np.clip((cubes.malignancy - 1.5) / 3, 0, 1), np.where(known, classes, -1)


@dataclass(frozen=True, eq=False)
class Source:
    """A screening network, and the composer of the samples in which its candidates are read."""

    screener: nn.Module
    composer: Composer


@dataclass(frozen=True, eq=False)
class RegionDrawer:
    """Draws training regions.

    Attributes:
        composer: its cubes teach ratings and outlines, and are implanted as neighbours.
        ratings: malignancy and texture of the composer's cubes, see `rated`.
        sources: a region is of one of them, at random for each sample.
        side: of a region, in voxels.
        share: of regions that teach ratings and outlines.
    """

    composer: Composer
    ratings: tuple[FloatArray, npt.NDArray[np.int64]]
    sources: Sequence[Source]
    noise: Noise = field(default_factory=lambda: Noise(96, 1))
    side: int = 48
    share: float = 0.2

    def stream(self, rng: np.random.Generator) -> Iterator[Region]:
        """Yield regions without end."""
        while True:
            for region in self.of_sample(rng):
                if rng.random() < self.share:
                    yield self._of_cube(rng)
                yield region

    def of_sample(self, rng: np.random.Generator) -> list[Region]:
        """Return regions around the candidates of one composed sample, as many of each kind.

        A sample without nodules, or without false positives, gives one of the other kind.
        """
        source = self.sources[int(rng.integers(len(self.sources)))]
        sample = source.composer.draw(rng)
        # the candidates that the edge would send; those on no mark are false
        peaks = peaks_of(source.screener, sample.voxels)
        near = peaks.index_zyx[peaks.logit > LEAST_LOGIT]
        false = apart(peaks, sample, 2.0, LEAST_LOGIT)
        # strong false candidates are drawn more often: the cloud is asked about these
        odds = 0.08 + sigmoid(false.logit + 2)
        # as many of each kind, so that the sample's composition does not tell the label
        count = min(len(sample.nodules), len(odds), EACH)
        others = list[Region]()
        if len(odds):
            some = min(max(count, 1), len(odds))
            chosen = rng.choice(len(odds), some, replace=False, p=odds / odds.sum())
            others = [
                self._cut(sample, np.append(false.index_zyx[i], 0.0), false.logit[i], rng)
                for i in chosen
            ]
        # nodules that the edge is unsure of are drawn more often, for the same reason
        sure = np.array([max(best_logit(peaks, one), LEAST_LOGIT) for one in sample.nodules])
        odds = 0.15 + sigmoid(1 - sure)
        some = min(max(count, 1), len(odds))
        found = rng.choice(len(odds), some, replace=False, p=odds / odds.sum()) if some else ()
        nodules = [self._around(sample, sample.nodules[i], near, sure[i], rng) for i in found]
        both = [*others, *nodules]
        return [both[i] for i in rng.permutation(len(both))]

    def _around(
        self, sample: Piece, nodule: FloatArray, candidates: FloatArray, edge: float,
        rng: np.random.Generator,
    ) -> Region:  # fmt: skip
        """Return a region around the candidate that hit a nodule; of a miss, around its middle."""
        hit = hit_of(nodule, candidates)
        at = nodule[:3] + rng.normal(0, 1.2, 3) if hit is None else hit
        return self._cut(sample, np.array([*at, nodule[3]]), edge, rng)

    def _cut(
        self, sample: Piece, mark: FloatArray, edge: float, rng: np.random.Generator
    ) -> Region:
        """Cut a region around a mark of a sample that was composed and augmented already."""
        # candidates are off their nodules by about a millimetre, and so must the regions be
        at = mark[:3] + rng.normal(0, 0.8, 3)
        voxels, mask = (cut_roi(a, at, (self.side,) * 3) for a in (sample.voxels, sample.mask))
        whole = flip(Piece(voxels, mask, NONE, NONE), rng)
        if rng.random() < NEIGHBOURS:
            whole = self._with_neighbour(whole, max(float(mark[3]), 8.0), rng)
        voxels, mask = np.ascontiguousarray(whole.voxels), np.ascontiguousarray(whole.mask)
        return Region(voxels, mask, float(mark[3] > 0), float(mark[3]), edge=float(edge))

    def _with_neighbour(self, region: Piece, width_mm: float, rng: np.random.Generator) -> Piece:
        """Implant another nodule beside what lies in the middle, ``width_mm`` wide."""
        donor = self.composer.nodule(rng)
        middle = np.array([[*[(self.side - 1) / 2] * 3, width_mm]])
        donor = flip(resized(donor, rng), rng)
        return implanted(replace(region, nodules=middle), donor, rng, real=True)

    def _of_cube(self, rng: np.random.Generator) -> Region:
        """Return a region of a cube's own nodule, with its ratings and its outline."""
        number = self.composer.drawn(rng)
        cube = resized(self.composer.cubes[number], rng)
        z, y, x, diameter = cube.nodules[0]
        at = np.array([z, y, x]) + rng.normal(0, 1.3 + 0.05 * diameter, 3)
        # the region is cut larger or smaller and scaled to its side, and its diameter with it
        factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.2))))
        size = (round(self.side / factor),) * 3
        voxels, mask = (cut_roi(a, at, size) for a in (cube.voxels, cube.mask))
        voxels, mask = (resize(a, self.side / size[0]) for a in (voxels, mask))
        whole = simulate_scanner(flip(Piece(voxels, mask, NONE, NONE), rng), rng, self.noise)
        diameter *= self.side / size[0]
        # scaled by more than this (natural logarithm) it is another nodule to a radiologist
        same = abs(np.log(diameter / self.composer.cubes[number].nodules[0, 3])) < 0.3
        malignancy, texture = self.ratings
        return Region(
            np.ascontiguousarray(whole.voxels), np.ascontiguousarray(whole.mask), np.nan, diameter,
            float(malignancy[number]) if same else np.nan, int(texture[number]), outlined=True,
        )  # fmt: skip


def as_sample(region: Region) -> dict[str, torch.Tensor]:
    """Return a region as what `hybrid_loss` takes, without batch axis."""
    return {
        "voxels": torch.from_numpy(region.voxels)[None],
        "nodule": torch.tensor(region.nodule, dtype=torch.float32),
        "log_diameter": torch.tensor(float(np.log(max(region.diameter_mm, 1.0)))),
        "sized": torch.tensor(float(region.diameter_mm > 0)),
        "malignancy": torch.tensor(region.malignancy, dtype=torch.float32),
        "texture": torch.tensor(region.texture),
        "mask": torch.from_numpy(region.mask)[None].float() / 255,
        "outlined": torch.tensor(float(region.outlined)),
        "edge": torch.tensor(region.edge, dtype=torch.float32),
    }


@dataclass(frozen=True, eq=False)
class Validation:
    """Regions of nodules and of false positives in one context, with the edge's logits.

    ``scans`` is the number of whole scans that the false positives come from.
    """

    nodules: UInt8Array
    nodule_logit: FloatArray
    false_positives: UInt8Array
    false_positive_logit: FloatArray
    scans: int

    def scored(self, network: nn.Module) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Return the logits of nodules and of false positives: of the network, the edge, both."""
        nodule, other = (logits(network, r) for r in (self.nodules, self.false_positives))
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
    """Trains on ``drawer``'s regions; measures on regions of other patients, by context.

    ``residual``: what is taught is the network's logit and this share of the screening network's,
    added. So it learns what the screening network does not know.
    """

    drawer: RegionDrawer
    validation: dict[str, Validation]
    network: nn.Module
    residual: float = 0.0
    batch: int = 24
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and what `hybrid_loss` compares with."""
        return draw_batches(
            partial(_samples, self.drawer), self.batch, workers=self.workers, seed=seed
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of `hybrid_loss`, each the mean over the members."""
        return losses_of_members(network, batch, hybrid_loss, self.residual)

    def refresh(self, network: nn.Module) -> None:
        """Mine the network's own errors among the screening network's candidates in whole scans."""
        sources = [self._mined(network, source) for source in self.drawer.sources]
        self.drawer = replace(self.drawer, sources=sources)

    def _mined(self, network: nn.Module, source: Source) -> Source:
        hard = []
        for scan in source.composer.scans:
            if not scan.name:  # a phantom: it has no anatomy to err on
                hard.append(NONE[:, :3])
                continue
            peaks = peaks_of(source.screener, scan.voxels, most=120)
            # the false candidates that this network, not the screening one, finds most like a
            # nodule
            places = apart(peaks, scan, 3, LEAST_LOGIT).index_zyx
            regions = _stacked([cut_roi(scan.voxels, at) for at in places])
            hard.append(places[np.argsort(-logits(network, regions))[:MINED]])
        return replace(source, composer=replace(source.composer, hard=hard))

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the CPM in each context that has nodules, and with the edge's logit."""
        return cpms(network, self.validation)


def losses_of_members(
    network: nn.Module, batch: Batch, loss: Callable[[Answers, Batch], Batch], residual: float
) -> Batch:
    """Return the terms of a loss, each the mean over the members; ``residual`` as in `HybridTask`.

    Every member learns by itself from the same regions; their mean is what serves.
    """
    assert isinstance(network, HybridNetwork)
    terms: dict[str, list[torch.Tensor]] = {}
    voxels = batch["voxels"].float() / 255
    known = residual * torch.nan_to_num(batch["edge"])[:, None]
    for member in network.listed():
        exact = Answers(*(out.float() for out in member(voxels)))
        exact = exact._replace(logit=exact.logit + known)
        for name, term in loss(exact, batch | {"mask": member.view(batch["mask"])}).items():
            terms.setdefault(name, []).append(term)
    return {name: torch.stack(found).mean() for name, found in terms.items()}


def cpms(network: nn.Module, validation: Mapping[str, Validation]) -> dict[str, float]:
    """Return the CPM in each context that has nodules, of each of the scores in it."""
    return {
        f"{context}_{name}": summary(*pair, held.scans)["cpm"]
        for context, held in validation.items()
        if len(held.nodules)
        for name, pair in held.scored(network).items()
    }


def validation_in_cubes(
    screener: nn.Module, cubes: Sequence[Piece], scans: Sequence[Piece]
) -> Validation:
    """Return nodules in their cubes, and false positives of scans in tiles cut as these are."""
    each = peaks_of_each(screener, [cube.voxels for cube in cubes])
    nodules = [_read(cube, cube.nodules[0], peaks) for cube, peaks in zip(cubes, each, strict=True)]
    false = []
    for scan in scans:
        peaks = apart(peaks_of_tiles(screener, scan.voxels), scan, 3, LEAST_LOGIT)
        for at, logit in zip(peaks.index_zyx, peaks.logit, strict=True):
            # the region ends where the cube of a nodule would: context must not tell the label
            place = tile_around(scan.voxels.shape, at)
            inside = at - np.array([one.start for one in place])
            false.append((cut_roi(scan.voxels[place], inside), float(logit)))
    return _validation(nodules, false, len(scans))


def validation_in_scans(screener: nn.Module, scans: Sequence[Piece]) -> Validation:
    """Return nodules and false positives of whole scans."""
    nodules, false = list[_Scored](), list[_Scored]()
    for scan in scans:
        peaks = peaks_of(screener, scan.voxels)
        nodules += [_read(scan, nodule, peaks) for nodule in scan.nodules]
        others = apart(peaks, scan, 3, LEAST_LOGIT)
        rois = (cut_roi(scan.voxels, at) for at in others.index_zyx)
        false += zip(rois, others.logit.tolist(), strict=True)
    return _validation(nodules, false, len(scans))


_Scored = tuple[UInt8Array, float]
"""A region, and the edge's logit."""


def _read(piece: Piece, nodule: FloatArray, peaks: Peaks) -> _Scored:
    region = cut_roi(piece.voxels, place_of(nodule, peaks.index_zyx))
    return region, max(best_logit(peaks, nodule), LEAST_LOGIT)


def _validation(nodules: Sequence[_Scored], false: Sequence[_Scored], scans: int) -> Validation:
    regions, others = (_stacked([roi for roi, _ in one]) for one in (nodules, false))
    logit, other_logit = (np.array([y for _, y in one], float) for one in (nodules, false))
    return Validation(regions, logit, others, other_logit, scans)


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
