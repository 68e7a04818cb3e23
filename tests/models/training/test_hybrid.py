import numpy as np
import pytest
import torch

from models.networks.hybrid import HybridNetwork
from models.training import hybrid
from models.training.data import Piece
from models.training.hybrid import (
    EDGE_WEIGHT,
    HybridTask,
    Validation,
    logits,
    validation_in_cubes,
    validation_in_scans,
)
from models.training.tiles import TILE
from tests.models.small_networks import TINY_HYBRID
from tests.models.training.test_data import ball, even
from tests.models.training.test_regions import SIDE, BrightHeat, drawer


def task() -> HybridTask:
    """One that draws in this process; bright regions are nodules on validation."""
    grey = np.stack([np.full((SIDE,) * 3, 60 * i, np.uint8) for i in range(4)])
    held = Validation(grey[2:], np.array([2.0, 3.0]), grey[:2], np.array([0.0, 1.0]), scans=1)
    torch.manual_seed(0)
    network = HybridNetwork(TINY_HYBRID)
    return HybridTask(drawer(), {"same": held, "whole": held}, network, batch=6, workers=0)


def test_a_batch_holds_all_that_the_loss_compares_with() -> None:
    learning = task()
    batch = next(learning.batches(seed=1))
    assert batch["voxels"].shape == batch["mask"].shape == (6, 1, SIDE, SIDE, SIDE)
    assert batch["voxels"].dtype == torch.uint8
    assert float(batch["mask"].max()) <= 1
    terms = learning.losses(learning.network, batch)
    assert {"nodule", "size", "malignancy", "texture", "voxel", "dice"} == terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())


def test_every_member_learns_and_learns_its_own_answer() -> None:
    """Each has the loss of its answer, not of the mean; the outline is taught to the widest."""
    learning = task()
    torch.stack(
        list(learning.losses(learning.network, batch_of(learning)).values())
    ).sum().backward()
    network = learning.network
    assert isinstance(network, HybridNetwork)
    for member in network.listed():
        gradients = [p.grad for p in member.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        assert member.answer.weight.grad is not None
        assert member.answer.weight.grad.any()


def batch_of(learning: HybridTask) -> dict[str, torch.Tensor]:
    return next(learning.batches(seed=2))


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


def test_a_network_is_evaluated_in_each_context_alone_and_with_the_edge() -> None:
    figures = task().evaluate(Brightness())
    assert set(figures) == {
        f"{c}_{n}" for c in ("same", "whole") for n in ("alone", "both", "edge")
    }
    assert all(cpm == 1.0 for cpm in figures.values())


def test_the_figures_of_both_weigh_the_edge() -> None:
    """A false positive that the edge alone ranks first is behind the nodule with the cloud."""
    grey = np.stack([np.full((8,) * 3, level, np.uint8) for level in (250, 0)])
    gap = (1 - EDGE_WEIGHT) / EDGE_WEIGHT * (250 / 255)
    for lead, cpm in ((0.9 * gap, 1.0), (1.1 * gap, pytest.approx(4 / 7))):
        held = Validation(grey[:1], np.array([0.0]), grey[1:], np.array([lead]), scans=1)
        figures = HybridTask(drawer(), {"same": held}, Brightness()).evaluate(Brightness())
        assert figures["same_both"] == cpm
        assert figures["same_edge"] == pytest.approx(4 / 7)  # from one false positive a scan on
        assert figures["same_alone"] == 1.0


def test_the_worst_errors_of_the_network_are_mined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the edge's candidates those that the second reader takes for nodules, not nodules."""
    monkeypatch.setattr(hybrid, "MINED", 1)
    lung = even((100, 110, 120))
    voxels = lung.voxels.copy()
    for z, level in ((30, 200), (50, 255), (70, 255)):
        voxels[z - 3 : z + 4, 52:59, 57:64] = level
    scan = Piece(voxels, lung.mask, np.array([[70.0, 55.0, 60.0, 8.0]]), lung.ignored)
    learning = task()
    learning.drawer = drawer(scans=[scan], screener=BrightHeat())
    learning.refresh(Brightness())
    (hard,) = learning.drawer.composer.hard
    assert len(hard) == 1
    np.testing.assert_allclose(hard[0], [50, 55, 60], atol=3)


def test_validation_reads_nodules_and_false_positives_in_one_context() -> None:
    """A false positive of a scan is cut from its tile, as a nodule is cut from its cube."""
    scan = even((90, 90, 90))
    scan.voxels[20:26, 40:46, 40:46] = 230
    cube = ball((TILE,) * 3, (24.5, 24.5, 24.5), 9.0)
    same = validation_in_cubes(BrightHeat(), [cube], [scan])
    assert same.nodules.shape == (1, SIDE, SIDE, SIDE)
    assert same.nodule_logit[0] > 0
    assert same.scans == 1
    whole = validation_in_scans(
        BrightHeat(), [Piece(scan.voxels, scan.mask, np.array([[80.0, 80, 80, 6]]), scan.ignored)]
    )
    for held in (same, whole):
        best = held.false_positives[int(held.false_positive_logit.argmax())]
        assert best[22:26, 22:26, 22:26].mean() > 150
    # the tile ends there and is continued by its mirror image or by air: not by the scan
    assert (whole.false_positives[0] != same.false_positives[0]).any()
    # a nodule without a candidate is read at its own place, with the lowest logit
    assert whole.nodule_logit.tolist() == [hybrid.LEAST_LOGIT]


def test_scans_without_nodules_give_no_figure() -> None:
    held = validation_in_scans(BrightHeat(), [even((48, 48, 48))])
    assert held.nodules.shape == (0, SIDE, SIDE, SIDE)
    assert HybridTask(drawer(), {"whole": held}, Brightness()).evaluate(Brightness()) == {}


def test_logits_come_in_the_order_of_the_regions() -> None:
    regions = np.stack([np.full((8, 8, 8), 50 * i, np.uint8) for i in range(5)])
    found = logits(Brightness(), regions, batch=2)
    assert found.shape == (5,)
    assert (np.diff(found) > 0).all()
    assert logits(Brightness(), regions[:0], batch=2).shape == (0,)
