import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.training.data import Batch
from models.training.loop import Plan, train
from tests.models.small_networks import SmallTask, square_error


def line() -> SmallTask:
    """Learns y = 2 x + 1 with one linear layer."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.rand(16, 1, generator=generator)
        return {"x": x, "y": 2 * x + 1}

    torch.manual_seed(0)
    return SmallTask(nn.Linear(1, 1), draw, square_error)


def test_training_learns_and_logs(tmp_path: Path) -> None:
    plan = Plan(tmp_path, minutes=0.05, rate=5e-2, average=0.9)
    network = train(line(), plan)
    assert float(network(torch.ones(1, 1)).detach()) == pytest.approx(3.0, abs=0.3)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {"steps", "left", "loss_loss"} <= set(last)
    assert (tmp_path / "averaged.pt").exists()


def test_a_resumed_run_spends_only_what_is_left(tmp_path: Path) -> None:
    train(line(), Plan(tmp_path, minutes=0.02))
    steps = torch.load(tmp_path / "last.pt", weights_only=True)["steps"]
    again = line()
    train(again, Plan(tmp_path, minutes=0.02, resume=True))
    assert again.drawn == 0
    train(line(), Plan(tmp_path, minutes=0.04, resume=True))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["steps"] > steps


def test_steps_with_gradients_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    task = line()
    task.loss = lambda network, batch: square_error(network, batch) * (1, torch.nan)[task.drawn % 2]
    network = train(task, Plan(tmp_path, minutes=0.02, rate=1e-2))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["skipped"] > 0
    assert all(torch.isfinite(p).all() for p in network.parameters())
