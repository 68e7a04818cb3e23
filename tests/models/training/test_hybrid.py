import numpy as np
import torch

from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningSpec
from models.training.hybrid import HybridTask, Validation, logits
from tests.models.training.test_regions import SIDE, drawer

SMALL = HybridSpec(
    known=ScreeningSpec((4, 8, 8, 8), (1, 1, 1)), widths=(4, 8), blocks=(1, 1),
    channels=32, depth=1, heads=1,
)  # fmt: skip


def task() -> HybridTask:
    """One that draws in this process; bright regions are nodules on validation."""
    grey = np.stack([np.full((SIDE,) * 3, 60 * i, np.uint8) for i in range(4)])
    trial = Validation(grey[2:], np.array([2.0, 3.0]), grey[:2], np.array([0.0, 1.0]), scans=1)
    torch.manual_seed(0)
    return HybridTask(drawer(), trial, HybridNetwork(SMALL), batch=6, workers=0)


def test_a_batch_holds_all_that_the_loss_asks_for() -> None:
    learning = task()
    batch = next(learning.batches(seed=1))
    assert batch["voxels"].shape == batch["mask"].shape == (6, 1, SIDE, SIDE, SIDE)
    assert batch["voxels"].dtype == torch.uint8
    assert float(batch["mask"].max()) <= 1
    terms = learning.losses(learning.network, batch)
    assert {"nodule", "size", "malignancy", "texture", "voxel", "dice"} == terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())


def test_the_seed_decides_the_batches() -> None:
    one, two = (next(task().batches(seed=3)) for _ in range(2))
    assert torch.equal(one["voxels"], two["voxels"])


class Brightness(torch.nn.Module):
    """Says the mean brightness as logit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """``(n, 1)``."""
        return (x.mean((2, 3, 4)) * self.weight,)


def test_a_network_is_evaluated_alone_and_with_the_edge() -> None:
    figures = task().evaluate(Brightness())
    assert figures["alone_0.5"] == figures["both_4"] == 1.0
    assert set(figures) == {f"{n}_{r}" for n in ("alone", "both") for r in ("0.5", "1", "2", "4")}


def test_logits_come_in_the_order_of_the_rois() -> None:
    regions = np.stack([np.full((8, 8, 8), 50 * i, np.uint8) for i in range(5)])
    found = logits(Brightness(), regions, batch=2)
    assert found.shape == (5,)
    assert (np.diff(found) > 0).all()
    assert logits(Brightness(), regions[:0], batch=2).shape == (0,)
