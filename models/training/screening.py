"""The screening network's training: composed samples in, its loss, its figures on validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from imaging.volume import FloatArray
from models.runtime.detection import Peaks, find_peaks
from models.runtime.screener import padded
from models.training.compose import Composer
from models.training.data import Batch, Piece, away_from_marks, draw_batches
from models.training.targets import Targets, make_targets, screening_loss

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""The false positives a scan whose mean sensitivity is the CPM."""


@dataclass
class ScreeningTask:
    """Trains on ``composer``'s samples; measures on ``cubes`` and ``scans`` of other patients."""

    composer: Composer
    cubes: Sequence[Piece]
    scans: Sequence[Piece]
    network: nn.Module
    batch: int = 4
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and the fields of `Targets`, without end."""
        return draw_batches(
            partial(_draw, self.composer), self.batch, workers=self.workers, seed=seed
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
        """Return sensitivity on the cubes at 1, 2, 4 and 8 false positives a scan, and the CPM."""
        return summary(*self.scores(network), len(self.scans))

    def scores(self, network: nn.Module) -> tuple[FloatArray, FloatArray]:
        """Return the logit of each cube's nodule, and of each false positive in the scans."""
        found = np.array([nodule_logit(network, cube) for cube in self.cubes])
        false = [false_positives(network, scan).logit for scan in self.scans]
        return found, np.concatenate(false)


def summary(found: FloatArray, false: FloatArray, scans: int) -> dict[str, float]:
    """Return the figures of `ScreeningTask.evaluate` from its scores and the number of scans."""
    at = [sensitivity_at(found, false, rate * scans) for rate in RATES]
    named = {f"at_{rate:g}": value for rate, value in zip(RATES, at, strict=True) if rate >= 1}
    return {"cpm": float(np.mean(at)), **named}


def _draw(composer: Composer, rng: np.random.Generator) -> Batch:
    sample = composer.draw(rng)
    targets = make_targets(sample)
    return {
        "voxels": torch.from_numpy(sample.voxels.copy())[None],
        **{f.name: torch.from_numpy(getattr(targets, f.name)) for f in fields(Targets)},
    }


def peaks_of(network: nn.Module, voxels: np.ndarray, *, most: int = 200) -> Peaks:
    """Return the torch network's peaks in a box, which is padded as the runtime pads it."""
    device = next(network.parameters()).device
    x = torch.from_numpy(padded(voxels)).to(device)[None, None].float() / 255
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        maps = network(x).float().cpu().numpy()[0, :5]
    return find_peaks(maps, least_logit=-7.0, most=most)


def nodule_logit(network: nn.Module, cube: Piece) -> float:
    """Return the highest logit within half a diameter of the cube's own nodule, -inf if none."""
    peaks = peaks_of(network, cube.voxels)
    away = np.linalg.norm(peaks.index_zyx - cube.nodules[0, :3], axis=1)
    return float(peaks.logit[away < cube.nodules[0, 3] / 2].max(initial=-np.inf))


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
