"""The training commands: material, task and plan put together, weights left in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from models.networks.hybrid import HybridNetwork
from models.networks.screening import ScreeningNetwork
from models.training.loop import Plan, train
from models.training.recipe import Material, hybrid_task, load_material, screening_task

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """What a training command was asked for.

    Attributes:
        data: folder with ``nodules`` and ``ct``.
        out: folder of the run; `averaged.pt` in it is the result.
        minutes: time to spend training, resumptions included.
        rate: highest learning rate.
        resume: go on from the run's checkpoint.
        start: weights to begin with; None for the network's own beginning.
        cache: where phantoms are kept; ``phantoms``: how many of them are learnt from.
        seed: of weights and samples.
    """

    data: Path
    out: Path
    minutes: float
    rate: float
    resume: bool
    start: Path | None
    cache: Path
    phantoms: int
    seed: int

    def material(self) -> Material:
        """Reads the data, and makes the phantoms that are not there yet."""
        return load_material(self.data, self.cache, self.phantoms)

    def plan(self, decay: float) -> Plan:
        """The loop's plan, with that weight decay."""
        return Plan(self.out, self.minutes, rate=self.rate, decay=decay, seed=self.seed)


def run_screening(run: Run) -> None:
    """Trains the screening network."""
    torch.manual_seed(run.seed)
    task = screening_task(run.material(), _started(ScreeningNetwork(), run.start))
    if run.start is not None:
        task.refresh(task.network.eval())  # it can raise alarms that are worth mining already
    train(task, run.plan(decay=0.02), resume=run.resume)


def run_hybrid(run: Run, screening: Sequence[Path]) -> None:
    """Trains the hybrid network on the candidates of the screening weights given."""
    torch.manual_seed(run.seed)
    screeners = [_started(ScreeningNetwork(), path).eval() for path in screening]
    hybrid = _started(HybridNetwork(), run.start)
    hybrid.start_from(screeners[-1].state_dict())
    task = hybrid_task(run.material(), screeners, hybrid)
    train(task, run.plan(decay=0.05), resume=run.resume)


def _started(network: Network, weights: Path | None) -> Network:
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network
