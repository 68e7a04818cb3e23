"""Training with weights left out: they stay zero; moving masks keep the number of weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from torch import nn

from models.pruning.sparse import Regrow, SparseTask, moved
from models.training.data import Batch
from models.training.loop import Plan, train


class Plane:
    """Learns y = W x, of which the true W uses the last four inputs only."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(8, 2, bias=False)
        self.truth = torch.zeros(2, 8)
        self.truth[:, 4:] = 3.0

    def batches(self, seed: int) -> Iterator[Batch]:
        """Points of the plane."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            x = torch.randn(32, 8, generator=generator)
            yield {"x": x, "y": x @ self.truth.T}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Squared error."""
        return {"square": ((network(batch["x"]).float() - batch["y"]) ** 2).mean()}

    def refresh(self, network: nn.Module) -> None:
        """Nothing to learn from the network."""

    def judge(self, network: nn.Module) -> dict[str, float]:
        """How many weights are not zero."""
        return {"left": float(torch.count_nonzero(network.weight))}


MASK = torch.tensor([[True] * 4 + [False] * 4] * 2)


def test_what_is_left_out_stays_zero(tmp_path: Path) -> None:
    """In the network, in its average, and in the weights that the run leaves."""
    task = SparseTask(Plane(), {"weight": MASK})
    averaged = train(task, Plan(tmp_path, minutes=0.01, average=0.9))
    saved = torch.load(tmp_path / "averaged.pt", weights_only=True)["weight"]
    for weight in (task.network.weight, averaged.weight, saved):
        assert not weight[~MASK].any()
        assert weight[MASK].all()


def test_moving_masks_find_the_weights_that_count() -> None:
    """As many weights as before at every moment, in the end mostly the true ones."""
    seconds = count()
    task = SparseTask(
        Plane(), {"weight": MASK}, Regrow(seconds=300, every=5), clock=lambda: next(seconds)
    )
    optimizer = torch.optim.SGD(task.network.parameters(), lr=0.1)
    for batch in islice(task.batches(0), 300):
        loss = task.losses(task.network, batch)["square"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert int(task.masks["weight"].sum()) == int(MASK.sum())
        assert not task.network.weight.detach()[~task.masks["weight"]].any()
    assert int(task.masks["weight"][:, 4:].sum()) >= 6  # of eight, from none


def test_the_share_that_moves_falls_to_nothing() -> None:
    """From its beginning with a cosine, and none is moved in the last quarter."""
    regrow = Regrow(seconds=100, share=0.4)
    assert [regrow.share_at(s) for s in (0, 37.5, 75, 90)] == pytest.approx([0.4, 0.2, 0, 0])


def test_the_smallest_go_and_the_steepest_come() -> None:
    """One of four weights moves to where the gradient is largest among those left out."""
    mask = torch.tensor([True, True, True, True, False, False])
    weight = torch.tensor([1.0, -0.1, 2.0, -3.0, 0.0, 0.0])
    slope = torch.tensor([9.0, 9.0, 9.0, 9.0, 0.5, -0.7])
    assert moved(mask, weight, slope, 0.25).tolist() == [True, False, True, True, False, True]
    assert moved(mask, weight, slope * torch.nan, 0.25).equal(mask)
