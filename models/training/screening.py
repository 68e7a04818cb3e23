"""The screening network's training: composed samples in, its loss, its figures on validation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imaging.volume import FloatArray
from models.networks.screening import COARSEST, ScreeningNetwork
from models.runtime.detection import Peaks, find_peaks
from models.training.compose import Composer
from models.training.loop import Batch
from models.training.losses import screening_loss
from models.training.piece import Piece
from models.training.targets import Targets, make_targets

HARD_LOGIT = -4.0
"""A false alarm of at least this is a hard negative."""


@dataclass
class ScreeningTask:
    """Trains on ``composer``'s samples; judges on ``cubes`` and ``scans`` of other patients."""

    composer: Composer
    cubes: Sequence[Piece]
    scans: Sequence[Piece]
    network: nn.Module
    batch: int = 4
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """``voxels`` float ``(n, 1, z, y, x)`` and the fields of `Targets`, without end."""
        stream = _Stream(self.composer, seed)
        yield from DataLoader(
            stream,
            self.batch,
            num_workers=self.workers,
            prefetch_factor=6 if self.workers else None,
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms of `screening_loss`."""
        maps = network(batch["voxels"].float() / 255)
        return screening_loss(maps.float(), batch)

    def refresh(self, network: nn.Module) -> None:
        """Mines the training scans: where the network raises false alarms, it trains more often."""
        hard = [_hard_places(network, scan) for scan in self.composer.scans]
        self.composer = replace(self.composer, hard=hard)

    def judge(self, network: nn.Module) -> dict[str, float]:
        """Sensitivity on the cubes at 1, 2, 4 and 8 false positives a scan, and the CPM."""
        found = np.array([nodule_logit(network, cube) for cube in self.cubes])
        alarms = np.concatenate([false_alarms(network, scan).logit for scan in self.scans])
        alarms = np.sort(alarms)[::-1]
        rates = [0.125, 0.25, 0.5, 1, 2, 4, 8]
        at = [_sensitivity(found, alarms, rate * len(self.scans)) for rate in rates]
        named = {f"at_{rate:g}": value for rate, value in zip(rates, at, strict=True) if rate >= 1}
        return {"cpm": float(np.mean(at)), **named}


class _Stream(IterableDataset[Batch]):
    def __init__(self, composer: Composer, seed: int) -> None:
        self._composer, self._seed = composer, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None:
            cv2.setNumThreads(0)
            os.nice(6)  # the loaders leave the cores to the training
        rng = np.random.default_rng((self._seed, info.id if info else 0))
        while True:
            sample = self._composer.draw(rng)
            targets = make_targets(sample)
            yield {
                "voxels": torch.from_numpy(sample.voxels.copy())[None],
                **{f.name: torch.from_numpy(getattr(targets, f.name)) for f in fields(Targets)},
            }


def look(network: nn.Module, voxels: np.ndarray, *, most: int = 200) -> Peaks:
    """The peaks that the torch network sees in a box, padded as the runtime pads it."""
    pad = [(0, -n % COARSEST) for n in voxels.shape]
    device = next(network.parameters()).device
    x = torch.from_numpy(np.pad(voxels, pad, mode="symmetric")).to(device)[None, None].float() / 255
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        maps = network(x).float().cpu().numpy()[0, :5]
    return find_peaks(maps, least_logit=-7.0, most=most)


def nodule_logit(network: nn.Module, cube: Piece) -> float:
    """The highest logit within half a diameter of the cube's own nodule; -inf if there is none."""
    peaks = look(network, cube.voxels)
    away = np.linalg.norm(peaks.index_zyx - cube.nodules[0, :3], axis=1)
    return float(peaks.logit[away < cube.nodules[0, 3] / 2].max(initial=-np.inf))


def false_alarms(network: nn.Module, scan: Piece) -> Peaks:
    """The peaks of a whole scan that lie in none of its marked lesions."""
    peaks = look(network, scan.voxels)
    apart = np.ones(len(peaks.logit), dtype=bool)
    for z, y, x, diameter in np.concatenate([scan.nodules, scan.ignored]):
        apart &= np.linalg.norm(peaks.index_zyx - [z, y, x], axis=1) > diameter / 2 + 5
    return Peaks(peaks.logit[apart], peaks.index_zyx[apart], peaks.diameter_mm[apart])


def _hard_places(network: nn.Module, scan: Piece, most: int = 60) -> FloatArray:
    peaks = false_alarms(network, scan)
    return peaks.index_zyx[peaks.logit > HARD_LOGIT][:most]


def _sensitivity(found: FloatArray, alarms: FloatArray, allowed: float) -> float:
    """The share of ``found`` above the highest threshold that leaves ``allowed`` alarms."""
    count = int(allowed)
    threshold = alarms[count] if count < len(alarms) else -np.inf
    return float(np.mean(found > threshold))


def new_network() -> ScreeningNetwork:
    """An untrained network of the shipped size."""
    return ScreeningNetwork()
