"""The hybrid network's training: regions in, its loss, its figures on validation candidates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imaging.volume import FloatArray
from models.training.loop import Batch
from models.training.losses import hybrid_loss
from models.training.regions import RegionDrawer


@dataclass(frozen=True, eq=False)
class Trial:
    """Validation: regions of nodules and of a scan's candidates, with the edge's logits."""

    nodules: np.ndarray
    nodule_logit: FloatArray
    alarms: np.ndarray
    alarm_logit: FloatArray
    scans: int


@dataclass
class HybridTask:
    """Trains on ``drawer``'s regions; judges on regions of other patients."""

    drawer: RegionDrawer
    trial: Trial
    network: nn.Module
    batch: int = 32
    workers: int = 1

    def batches(self, seed: int) -> Iterator[Batch]:
        """``voxels`` uint8 ``(n, 1, z, y, x)`` and what `hybrid_loss` compares with."""
        stream = _Stream(self.drawer, seed)
        yield from DataLoader(
            stream,
            self.batch,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms of `hybrid_loss`."""
        outputs = network(batch["voxels"].float() / 255)
        return hybrid_loss(tuple(out.float() for out in outputs), batch)

    def refresh(self, network: nn.Module) -> None:
        """Nothing: the alarms are those of the screening network, which stands still."""

    def judge(self, network: nn.Module) -> dict[str, float]:
        """Sensitivity at 1/2 to 8 false positives a scan, alone and added to the edge's logit."""
        nodule, alarm = (logits(network, r) for r in (self.trial.nodules, self.trial.alarms))
        figures = {}
        both = (nodule + self.trial.nodule_logit, alarm + self.trial.alarm_logit)
        for name, (found, false) in {"alone": (nodule, alarm), "both": both}.items():
            for rate in (0.5, 1, 2, 4):
                figures[f"{name}_{rate:g}"] = _sensitivity(found, false, rate * self.trial.scans)
        return figures


class _Stream(IterableDataset[Batch]):
    def __init__(self, drawer: RegionDrawer, seed: int) -> None:
        self._drawer, self._seed = drawer, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None:
            cv2.setNumThreads(0)
            os.nice(6)  # the loaders leave the cores to the training
        rng = np.random.default_rng((self._seed, info.id if info else 0))
        while True:
            region = self._drawer.draw(rng)
            mask = torch.from_numpy(region.mask)[None].float() / 255
            yield {
                "voxels": torch.from_numpy(region.voxels)[None],
                "nodule": torch.tensor(float(region.diameter_mm > 0)),
                "log_diameter": torch.tensor(float(np.log(max(region.diameter_mm, 1.0)))),
                "share": F.avg_pool3d(mask, 4),
            }


def logits(network: nn.Module, regions: np.ndarray, *, batch: int = 32) -> FloatArray:
    """The network's logits ``(n,)`` of uint8 regions ``(n, z, y, x)``."""
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(regions), batch):
            part = torch.from_numpy(regions[start : start + batch]).to(device)
            found.append(network(part[:, None].float() / 255)[0][:, 0].float().cpu().numpy())
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)


def _sensitivity(found: FloatArray, alarms: FloatArray, allowed: float) -> float:
    ranked = np.sort(alarms)[::-1]
    count = int(allowed)
    return float(np.mean(found > (ranked[count] if count < len(ranked) else -np.inf)))


def batch_of(regions: Sequence[np.ndarray]) -> np.ndarray:
    """Regions stacked; an empty sequence is an empty batch."""
    return np.stack(regions) if regions else np.zeros((0, 48, 48, 48), np.uint8)
