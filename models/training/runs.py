"""The training commands: material, task and plan put together, weights left in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.networks.screening import ScreeningNetwork
from models.training.loop import Plan, train
from models.training.recipe import hybrid_task, load_material, screening_task


def run_screening(
    data: Path,
    out: Path,
    minutes: float,
    *,
    resume: bool,
    phantoms: tuple[Path, int],
    seed: int,
) -> None:
    """Trains the screening network; `out/averaged.pt` is the result."""
    torch.manual_seed(seed)
    material = load_material(data, *phantoms)
    train(screening_task(material), Plan(out, minutes, seed=seed), resume=resume)


def run_hybrid(
    data: Path,
    out: Path,
    minutes: float,
    screening: Sequence[Path],
    *,
    resume: bool,
    phantoms: tuple[Path, int],
    seed: int,
) -> None:
    """Trains the hybrid network on the candidates of the screening weights given."""
    torch.manual_seed(seed)
    material = load_material(data, *phantoms)
    task = hybrid_task(material, [load_screening(path) for path in screening])
    train(task, Plan(out, minutes, rate=1e-3, decay=0.05, seed=seed), resume=resume)


def load_screening(path: Path) -> ScreeningNetwork:
    """A screening network with the weights of a run."""
    network = ScreeningNetwork()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
