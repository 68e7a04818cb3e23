"""The hybrid network's training: regions in, its loss, its figures on validation candidates."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from imaging.volume import FloatArray
from models.networks.hybrid import Answers
from models.training.data import Batch, draw_batches
from models.training.regions import RegionDrawer
from models.training.screening import sensitivity_at
from models.training.targets import hybrid_loss


@dataclass(frozen=True, eq=False)
class Validation:
    """Regions of validation nodules and of false positives in scans, with the edge's logits."""

    nodules: np.ndarray
    nodule_logit: FloatArray
    false_positives: np.ndarray
    false_positive_logit: FloatArray
    scans: int


@dataclass
class HybridTask:
    """Trains on ``drawer``'s regions; measures on regions of other patients."""

    drawer: RegionDrawer
    validation: Validation
    network: nn.Module
    batch: int = 32
    workers: int = 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield ``voxels`` uint8 ``(n, 1, z, y, x)`` and what `hybrid_loss` compares with."""
        return draw_batches(
            partial(_draw, self.drawer), self.batch, workers=self.workers, seed=seed
        )

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of `hybrid_loss`."""
        answers = network(batch["voxels"].float() / 255)
        return hybrid_loss(Answers(*(out.float() for out in answers)), batch)

    def refresh(self, network: nn.Module) -> None:
        """Do nothing: the false positives are those of the screening network, which is fixed."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return sensitivity at 0.5 to 4 false positives a scan, alone and with the edge."""
        held = self.validation
        nodule, other = (logits(network, r) for r in (held.nodules, held.false_positives))
        both = (nodule + held.nodule_logit, other + held.false_positive_logit)
        return {
            f"{name}_{rate:g}": sensitivity_at(found, false, rate * held.scans)
            for name, (found, false) in {"alone": (nodule, other), "both": both}.items()
            for rate in (0.5, 1, 2, 4)
        }


def _draw(drawer: RegionDrawer, rng: np.random.Generator) -> Batch:
    region = drawer.draw(rng)
    return {
        "voxels": torch.from_numpy(region.voxels)[None],
        "nodule": torch.tensor(float(region.diameter_mm > 0)),
        "log_diameter": torch.tensor(float(np.log(max(region.diameter_mm, 1.0)))),
        "malignancy": torch.tensor(region.malignancy, dtype=torch.float32),
        "texture": torch.tensor(region.texture),
        "mask": torch.from_numpy(region.mask)[None].float() / 255,
    }


def logits(network: nn.Module, regions: np.ndarray, *, batch: int = 32) -> FloatArray:
    """Return the network's logits ``(n,)`` of uint8 regions ``(n, z, y, x)``."""
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(regions), batch):
            part = torch.from_numpy(regions[start : start + batch]).to(device)
            found.append(network(part[:, None].float() / 255)[0][:, 0].float().cpu().numpy())
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)
