"""The hybrid network's training: regions in, its loss, its figures on validation candidates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from imaging.roi import ROI_SHAPE, cut_roi
from imaging.volume import FloatArray, UInt8Array
from models.networks.hybrid import Answers, HybridNetwork
from models.training.data import Batch, Piece, away_from_marks, draw_batches
from models.training.regions import LEAST_LOGIT, RegionDrawer, as_sample
from models.training.screening import (
    RATES,
    best_logit,
    hit_of,
    peaks_of,
    peaks_of_each,
    peaks_of_tiles,
    sensitivity_at,
)
from models.training.targets import hybrid_loss
from models.training.tiles import tile_around

MINED = 40
"""The worst errors of the network in each whole scan that later samples show more often."""

EDGE_WEIGHT = 0.65
"""Of the screening network's logit in the figures of both."""


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


@dataclass
class HybridTask:
    """Trains on ``drawer``'s regions; measures on regions of other patients, by context."""

    drawer: RegionDrawer
    validation: dict[str, Validation]
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
        assert isinstance(network, HybridNetwork)
        terms: dict[str, list[torch.Tensor]] = {}
        voxels = batch["voxels"].float() / 255
        # every member learns by itself from the same regions; their mean is what serves
        for member in network.listed():
            exact = Answers(*(out.float() for out in member(voxels)))
            shown = batch | {"mask": member.view(batch["mask"])}
            for name, term in hybrid_loss(exact, shown).items():
                terms.setdefault(name, []).append(term)
        return {name: torch.stack(found).mean() for name, found in terms.items()}

    def refresh(self, network: nn.Module) -> None:
        """Mine the network's own errors among the screening network's candidates in whole scans."""
        composer = self.drawer.composer
        hard = [self._errors(network, scan) for scan in composer.scans]
        self.drawer = replace(self.drawer, composer=replace(composer, hard=hard))

    def _errors(self, network: nn.Module, scan: Piece) -> FloatArray:
        peaks = peaks_of(self.drawer.screeners[-1], scan.voxels, most=120)
        # the false candidates that this network, not the screening one, finds most like a nodule
        apart = away_from_marks(peaks.index_zyx, scan, 3)
        places = peaks.index_zyx[apart & (peaks.logit > LEAST_LOGIT)]
        if not len(places):
            return places
        order = np.argsort(-logits(network, _regions(scan.voxels, places)))
        return places[order[:MINED]]

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the CPM in each context that has nodules, and with the edge's logit."""
        found = {}
        for context, held in self.validation.items():
            if not len(held.nodules):
                continue
            nodule, other = (logits(network, r) for r in (held.nodules, held.false_positives))
            pairs = {
                "alone": (nodule, other),
                "both": (
                    EDGE_WEIGHT * held.nodule_logit + (1 - EDGE_WEIGHT) * nodule,
                    EDGE_WEIGHT * held.false_positive_logit + (1 - EDGE_WEIGHT) * other,
                ),
                "edge": (held.nodule_logit, held.false_positive_logit),
            }
            for name, (hits, false) in pairs.items():
                at = [sensitivity_at(hits, false, rate * held.scans) for rate in RATES]
                found[f"{context}_{name}"] = float(np.mean(at))
        return found


def validation_in_cubes(
    screener: nn.Module, cubes: Sequence[Piece], scans: Sequence[Piece]
) -> Validation:
    """Return nodules in their cubes, and false positives of scans in tiles cut as these are."""
    nodules, nodule_logit, regions, false_logit = [], [], [], []
    for cube, peaks in zip(
        cubes, peaks_of_each(screener, [cube.voxels for cube in cubes]), strict=True
    ):
        nodules.append(_region_of(cube, cube.nodules[0], peaks.index_zyx))
        nodule_logit.append(max(best_logit(peaks, cube.nodules[0]), LEAST_LOGIT))
    for scan in scans:
        peaks = peaks_of_tiles(screener, scan.voxels)
        keep = away_from_marks(peaks.index_zyx, scan, 3) & (peaks.logit > LEAST_LOGIT)
        for at, logit in zip(peaks.index_zyx[keep], peaks.logit[keep], strict=True):
            # the region ends where the cube of a nodule would: context must not tell the label
            place = tile_around(scan.voxels.shape, at)
            inside = at - np.array([one.start for one in place])
            regions.append(cut_roi(scan.voxels[place], inside))
            false_logit.append(logit)
    return Validation(
        _stacked(nodules), np.array(nodule_logit), _stacked(regions), np.array(false_logit),
        len(scans),
    )  # fmt: skip


def validation_in_scans(screener: nn.Module, scans: Sequence[Piece]) -> Validation:
    """Return nodules and false positives of whole scans."""
    nodules, nodule_logit, regions, false_logit = [], [], [], []
    for scan in scans:
        peaks = peaks_of(screener, scan.voxels)
        for nodule in scan.nodules:
            nodules.append(_region_of(scan, nodule, peaks.index_zyx))
            nodule_logit.append(max(best_logit(peaks, nodule), LEAST_LOGIT))
        keep = away_from_marks(peaks.index_zyx, scan, 3) & (peaks.logit > LEAST_LOGIT)
        regions += [cut_roi(scan.voxels, at) for at in peaks.index_zyx[keep]]
        false_logit.append(peaks.logit[keep])
    return Validation(
        _stacked(nodules), np.array(nodule_logit), _stacked(regions), np.concatenate(false_logit),
        len(scans),
    )  # fmt: skip


def _stacked(regions: Sequence[UInt8Array]) -> UInt8Array:
    return np.stack(regions) if regions else np.zeros((0, *ROI_SHAPE), np.uint8)


def _region_of(piece: Piece, nodule: FloatArray, candidates: FloatArray) -> UInt8Array:
    """Return the region around the candidate that hit a nodule; of a miss, around its middle."""
    hit = hit_of(nodule, candidates)
    return cut_roi(piece.voxels, nodule[:3] if hit is None else hit)


def _regions(voxels: UInt8Array, places: FloatArray) -> UInt8Array:
    return np.stack([cut_roi(voxels, at) for at in places])


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
