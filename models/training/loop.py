"""The training loop: a budget in minutes, resumable, averaged weights, a GPU if there is one.

It does not know what it trains: a `Task` gives batches and losses.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import Progress, track
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.training.data import Batch

_PARTS, _COUNTS = ("network", "averaged", "optimizer"), ("spent_s", "steps", "skipped")
"""What a checkpoint holds of a `State`."""


Losses = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
"""Returns the terms of the loss of one batch by name; they are summed."""


class Task(Protocol):
    """A network to train, an endless stream of batches, and a loss."""

    network: nn.Module

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield batches without end."""
        ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of the loss, as `Losses`."""
        ...

    def refresh(self, network: nn.Module) -> None:
        """Adapt later batches to the network; called every ``refresh_minutes``."""
        ...

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return figures of the averaged network on validation material."""
        ...


@dataclass(frozen=True)
class Plan:
    """The parameters of a run. ``minutes`` is time spent training, over all resumptions.

    ``half``: products are computed in bfloat16, which is four to five times as fast. ``resume``: go
    on from the checkpoint in ``out``, if there is one. ``start``: the weights of the runs that this
    one goes on from, for the log.
    """

    out: Path
    minutes: float
    rate: float = 3e-3
    decay: float = 0.02
    warm_up: float = 0.03
    average: float = 0.998
    evaluation_minutes: float = 8.0
    refresh_minutes: float = 8.0
    save_minutes: float = 2.0
    seed: int = 0
    half: bool = True
    resume: bool = False
    start: tuple[Path, ...] = ()


class State:
    """What a run carries from step to step; ``decay`` is that of the average of the weights."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.network, self.optimizer = network, optimizer
        average = get_ema_multi_avg_fn(decay)
        self.averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self.spent_s, self.steps, self.skipped = 0.0, 0, 0

    def step(self, losses: Losses, batch: Batch, rate: float, *, half: bool) -> dict[str, float]:
        """Do one step, also of the average, and return the terms of the loss.

        If a gradient is not finite it is left out and counted, and there are no terms.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = terms_of(losses, self.network.train(), batch, half=half)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.steps += 1
        if not torch.isfinite(norm):  # seen in bf16 on some CPUs
            self.skipped += 1
            return {}
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        return {name: float(value.detach()) for name, value in terms.items()}

    def average(self) -> nn.Module:
        """Return the averaged network, to evaluate it."""
        averaged: nn.Module = self.averaged.module
        return averaged.eval()

    def write(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        save(parts | {name: getattr(self, name) for name in _COUNTS}, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        device = next(self.network.parameters()).device
        found = torch.load(path, map_location=device, weights_only=True)
        for name in _PARTS:
            getattr(self, name).load_state_dict(found[name])
        for name in _COUNTS:
            setattr(self, name, found[name])


def train(task: Task, plan: Plan) -> nn.Module:
    """Train for ``plan.minutes`` and return the averaged network; log to `plan.out/log.jsonl`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    network = placed(task.network)
    # weight decay is for weights; biases and norms have no reason to be small
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    state = State(network, optimizer, plan.average)
    if plan.resume and (plan.out / "last.pt").exists():
        state.restore(plan.out / "last.pt")
    _run(task, plan, state)
    averaged = state.average()
    save(averaged.state_dict(), plan.out / "averaged.pt")
    return averaged


def fine_tune(
    network: nn.Module, batches: Iterator[Batch], losses: Losses, *, steps: int, rate: float
) -> nn.Module:
    """Take ``steps`` steps of a rate that rises to ``rate`` and falls; return the averaged network.

    It counts steps and not minutes: a comparison must not depend on the processor's speed.
    """
    network = placed(network)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.02)
    # the average is that of the last fifty steps or so
    state = State(network, optimizer, decay=0.98)
    for step in track(range(steps), "fine-tuning"):
        factor = schedule(step / steps, warm_up=0.05, flat=0.05)
        state.step(losses, next(batches), rate * factor, half=True)
    return state.average()


def placed(network: nn.Module) -> nn.Module:
    """Return the network on a GPU if there is one, its weights laid out for 3D convolutions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last_3d
    moved: nn.Module = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # no stub
    return moved


def _run(task: Task, plan: Plan, state: State) -> None:
    budget_s = plan.minutes * 60
    if state.steps:
        task.refresh(state.average())
    # the seed moves with the steps, so that a run that continues does not repeat its samples
    batches = task.batches(plan.seed + state.steps)
    last = dict.fromkeys(("save", "refresh", "evaluate"), state.spent_s)

    def due(what: str, minutes: float) -> bool:
        if state.spent_s - last[what] <= minutes * 60:
            return False
        last[what] = state.spent_s
        return True

    sums: dict[str, float] = {}
    with Progress() as progress:
        bar = progress.add_task("training", total=budget_s, completed=int(state.spent_s))
        while state.spent_s < budget_s:
            began = time.monotonic()
            # the budget is time spent in steps: measuring on validation and saving do not use it up
            rate = plan.rate * schedule(state.spent_s / budget_s, plan.warm_up)
            terms = state.step(task.losses, next(batches), rate, half=plan.half)
            for name, value in terms.items():
                sums[name] = 0.98 * sums.get(name, value) + 0.02 * value
            state.spent_s += time.monotonic() - began
            progress.update(bar, completed=state.spent_s)
            if due("save", plan.save_minutes):
                state.write(plan.out / "last.pt")
            if due("refresh", plan.refresh_minutes):
                task.refresh(state.average())
                batches = task.batches(plan.seed + state.steps)
            if due("evaluate", plan.evaluation_minutes) or state.spent_s >= budget_s:
                _log(plan, state, sums, task.evaluate(state.average()))
    state.write(plan.out / "last.pt")


def terms_of(
    losses: Losses, network: nn.Module, batch: Batch, *, half: bool = True
) -> dict[str, torch.Tensor]:
    """Return the losses of a batch, computed where the network is."""
    device = next(network.parameters()).device
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        return losses(network, moved)


def schedule(progress: float, warm_up: float, flat: float = 0.4) -> float:
    """Return the factor on the rate: linear warm-up, 1 until ``flat``, then a cosine to 0.01."""
    # Adam's first estimates are poor: a full rate at once throws a warm start away
    if progress < warm_up:
        return progress / warm_up + 0.01
    fall = max(progress - flat, 0.0) / (1 - flat)
    return float(0.01 + 0.99 * 0.5 * (1 + np.cos(fall * np.pi)))


def _log(plan: Plan, state: State, sums: dict[str, float], figures: dict[str, float]) -> None:
    line = {
        "minutes": round(state.spent_s / 60, 2),
        "steps": state.steps,
        "skipped": state.skipped,
        "seed": plan.seed,
        "start": [str(path) for path in plan.start],
        **{f"loss_{name}": round(value, 5) for name, value in sums.items()},
        **{name: round(value, 4) for name, value in figures.items()},
    }
    with (plan.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def save(value: object, path: Path) -> None:
    """Write weights or a checkpoint atomically."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)
