"""The screening network's training: composed samples in, its loss, its figures on validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from imaging.volume import FloatArray, UInt8Array
from models.runtime.detection import Peaks, find_peaks
from models.runtime.screener import padded
from models.training.compose import Composer, cut_out
from models.training.data import Batch, Piece, away_from_marks, draw_batches
from models.training.targets import Targets, make_targets, screening_loss
from models.training.tiles import of_tiles, tiles

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""The false positives a scan whose mean sensitivity is the CPM."""


SAMPLES_A_CUT = 3
"""One of three samples comes again, cut out: a batch has four."""


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
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and the fields of `Targets`, without end.

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
            peaks = false_positives(network, scan)
            hard.append(peaks.index_zyx[peaks.logit > -4.0][:60])  # the 60 strongest at most
        self.composer = replace(self.composer, hard=hard)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return sensitivity at 1, 2, 4 and 8 false positives a scan, and the CPM.

        Nodules are those of the cubes; the false positives are read in tiles cut as these are.
        """
        return summary(*self.scores(network), len(self.scans))

    def scores(self, network: nn.Module) -> tuple[FloatArray, FloatArray]:
        """Return the logit of each cube's nodule, and of each false positive in equal context."""
        # of each cube the best candidate on its own nodule, its first mark
        found = [
            best_logit(peaks, cube.nodules[0])
            for cube, peaks in zip(
                self.cubes, peaks_of_each(network, [c.voxels for c in self.cubes]), strict=True
            )
        ]
        false = []
        for scan in self.scans:
            peaks = peaks_of_tiles(network, scan.voxels)
            false.append(peaks.logit[away_from_marks(peaks.index_zyx, scan, 5)])
        return np.array(found), np.concatenate(false)


def summary(found: FloatArray, false: FloatArray, scans: int) -> dict[str, float]:
    """Return the figures of `ScreeningTask.evaluate` from its scores and the number of scans."""
    at = [sensitivity_at(found, false, rate * scans) for rate in RATES]
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
    targets = make_targets(sample)
    return {
        "voxels": torch.from_numpy(sample.voxels.copy())[None],
        "cut": torch.tensor(cut),
        **{f.name: torch.from_numpy(getattr(targets, f.name)) for f in fields(Targets)},
    }


def peaks_of(network: nn.Module, voxels: UInt8Array, *, most: int = 200) -> Peaks:
    """Return the torch network's peaks in a box, which is padded as the runtime pads it."""
    return peaks_of_each(network, [voxels], most=most)[0]


def peaks_of_each(
    network: nn.Module, boxes: Sequence[UInt8Array], *, most: int = 200, batch: int = 8
) -> list[Peaks]:
    """Return the peaks of boxes; neighbours of one shape are read together."""
    device, found = next(network.parameters()).device, list[Peaks]()
    while len(found) < len(boxes):
        left = boxes[len(found) : len(found) + batch]
        alike = [box.shape == left[0].shape for box in left]
        part = left[: alike.index(False) if False in alike else len(left)]
        x = torch.from_numpy(np.stack([padded(box) for box in part])).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            maps = network(x[:, None].float() / 255).float().cpu().numpy()[:, :5]
        found += [find_peaks(one, least_logit=-7.0, most=most) for one in maps]
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


def false_positives(network: nn.Module, scan: Piece) -> Peaks:
    """Return the peaks of a whole scan that lie in none of its marked lesions."""
    peaks = peaks_of(network, scan.voxels)
    apart = away_from_marks(peaks.index_zyx, scan, 5)
    return Peaks(peaks.logit[apart], peaks.index_zyx[apart], peaks.diameter_mm[apart])


def sensitivity_at(found: FloatArray, false: FloatArray, allowed: float) -> float:
    """Return the share of ``found`` above the lowest threshold with ``allowed`` false positives."""
    ranked = np.sort(false)[::-1]
    count = int(allowed)
    return float(np.mean(found > (ranked[count] if count < len(ranked) else -np.inf)))
