"""The training loop: it learns, saves, and goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models.training.data import Batch
from models.training.loop import Plan, train


class Line:
    """Learns y = 2 x + 1 with one linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(1, 1)
        self.drawn = 0

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            self.drawn += 1
            x = torch.rand(16, 1, generator=generator)
            yield {"x": x, "y": 2 * x + 1}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"square": ((network(batch["x"]).float() - batch["y"]) ** 2).mean()}

    def refresh(self, network: nn.Module) -> None:
        """Nothing to learn from the network."""

    def judge(self, network: nn.Module) -> dict[str, float]:
        return {"slope": float(network.weight.detach().squeeze())}


def test_training_learns_and_logs(tmp_path: Path) -> None:
    plan = Plan(tmp_path, minutes=0.05, rate=5e-2, average=0.9)
    network = train(Line(), plan)
    assert float(network(torch.ones(1, 1)).detach()) == pytest.approx(3.0, abs=0.3)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {"steps", "slope", "loss_square"} <= set(last)
    assert (tmp_path / "averaged.pt").exists()


def test_a_resumed_run_spends_only_what_is_left(tmp_path: Path) -> None:
    train(Line(), Plan(tmp_path, minutes=0.02))
    steps = torch.load(tmp_path / "last.pt", weights_only=True)["steps"]
    again = Line()
    train(again, Plan(tmp_path, minutes=0.02), resume=True)
    assert again.drawn == 0
    train(Line(), Plan(tmp_path, minutes=0.04), resume=True)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["steps"] > steps


class Broken(Line):
    """Every second batch gives a loss that is not finite."""

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        factor = float("nan") if self.drawn % 2 else 1.0
        return {"square": super().losses(network, batch)["square"] * factor}


def test_steps_with_gradients_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    network = train(Broken(), Plan(tmp_path, minutes=0.02, rate=1e-2))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["skipped"] > 0
    assert all(torch.isfinite(p).all() for p in network.parameters())
