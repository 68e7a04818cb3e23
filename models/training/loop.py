"""The training loop: a budget in minutes, resumable, averaged weights, a GPU if there is one.

It does not know what it trains: a `Task` gives batches and losses.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import Progress, track
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.training.data import Batch

_PARTS, _COUNTS = ("network", "averaged", "optimizer"), ("spent_s", "steps", "skipped")
"""What a checkpoint holds of a `State`."""


class Task(Protocol):
    """A network to train, an endless stream of batches, and a loss."""

    network: nn.Module

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield batches without end."""
        ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of the loss of one batch by name; they are summed."""
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


@dataclass
class State:
    """What a run carries from step to step."""

    network: nn.Module
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    spent_s: float = 0.0
    steps: int = 0
    skipped: int = 0


def train(task: Task, plan: Plan) -> nn.Module:
    """Train for ``plan.minutes`` and return the averaged network; log to `plan.out/log.jsonl`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = _start(task, plan, device)
    if plan.resume and (plan.out / "last.pt").exists():
        _restore(state, plan.out / "last.pt", device)
    _run(task, plan, state)
    network: nn.Module = state.averaged.module
    save(network, plan.out / "averaged.pt")
    return network


def fine_tune(
    network: nn.Module,
    batches: Iterator[Batch],
    losses: Callable[[nn.Module, Batch], dict[str, torch.Tensor]],
    *,
    steps: int,
    rate: float,
) -> nn.Module:
    """Take ``steps`` steps of a rate that rises to ``rate`` and falls; return the averaged network.

    It counts steps and not minutes: a comparison must not depend on the processor's speed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = channels_last(network.to(device)).train()
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.02)
    # the average is that of the last fifty steps or so
    state = State(network, average_of(network, 0.98), optimizer)
    for step in track(range(steps), "fine-tuning"):
        batch = {name: value.to(device) for name, value in next(batches).items()}
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.stack(list(losses(network, batch).values())).sum()
        descend(state, loss, rate * schedule(step / steps, warm_up=0.05, flat=0.05))
    averaged: nn.Module = state.averaged.module
    return averaged.eval()


def save(network: nn.Module, path: Path) -> None:
    """Write the weights atomically."""
    _write_atomically(network.state_dict(), path)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights out for a CPU's fast 3D convolutions."""
    layout = torch.channels_last_3d
    moved: nn.Module = network.to(memory_format=layout)  # type: ignore[call-overload]  # no stub
    return moved


def _start(task: Task, plan: Plan, device: torch.device) -> State:
    network = task.network.to(device)
    if any(weight.ndim == 5 for weight in network.parameters()):
        network = channels_last(network)
    # weight decay is for weights; biases and norms have no reason to be small
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    return State(network, average_of(network, plan.average), optimizer)


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and buffers."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _run(task: Task, plan: Plan, state: State) -> None:
    budget_s = plan.minutes * 60
    if state.steps:
        task.refresh(state.averaged.module.eval())
    # the seed moves with the steps, so that a run that continues does not repeat its samples
    batches = task.batches(plan.seed + state.steps)
    saved = evaluated = refreshed = state.spent_s
    sums: dict[str, float] = {}
    with Progress() as progress:
        bar = progress.add_task("training", total=budget_s, completed=int(state.spent_s))
        while state.spent_s < budget_s:
            began = time.monotonic()
            # the budget is time spent in steps: measuring on validation and saving do not use it up
            terms = _step(task, plan, state, next(batches), state.spent_s / budget_s)
            for name, value in terms.items():
                sums[name] = 0.98 * sums.get(name, value) + 0.02 * value
            state.spent_s += time.monotonic() - began
            progress.update(bar, completed=state.spent_s)
            if state.spent_s - saved > plan.save_minutes * 60:
                saved = state.spent_s
                _write_atomically(_snapshot(state), plan.out / "last.pt")
            if state.spent_s - refreshed > plan.refresh_minutes * 60:
                refreshed = state.spent_s
                task.refresh(state.averaged.module.eval())
                batches = task.batches(plan.seed + state.steps)
            if (
                state.spent_s - evaluated > plan.evaluation_minutes * 60
                or state.spent_s >= budget_s
            ):
                evaluated = state.spent_s
                _log(plan, state, sums, task.evaluate(state.averaged.module.eval()))
    _write_atomically(_snapshot(state), plan.out / "last.pt")


def _step(task: Task, plan: Plan, state: State, batch: Batch, progress: float) -> dict[str, float]:
    state.network.train()
    terms = terms_of(task, state.network, batch, half=plan.half)
    loss = torch.stack(list(terms.values())).sum()
    if not descend(state, loss, plan.rate * schedule(progress, plan.warm_up)):
        return {}
    return {name: float(value.detach()) for name, value in terms.items()}


def terms_of(
    task: Task, network: nn.Module, batch: Batch, *, half: bool = True
) -> dict[str, torch.Tensor]:
    """Return the task's losses of a batch, computed where the network is."""
    device = next(network.parameters()).device
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        return task.losses(network, moved)


def descend(state: State, loss: torch.Tensor, rate: float) -> bool:
    """Do one step, also of the average; leave it out and count it if a gradient is not finite."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), 5.0)
    state.steps += 1
    if not torch.isfinite(norm):  # seen in bf16 on some CPUs
        state.skipped += 1
        return False
    state.optimizer.step()
    state.averaged.update_parameters(state.network)
    return True


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


def _snapshot(state: State) -> dict[str, Any]:
    parts = {name: getattr(state, name).state_dict() for name in _PARTS}
    return parts | {name: getattr(state, name) for name in _COUNTS}


def _restore(state: State, path: Path, device: torch.device) -> None:
    found = torch.load(path, map_location=device, weights_only=True)
    for name in _PARTS:
        getattr(state, name).load_state_dict(found[name])
    for name in _COUNTS:
        setattr(state, name, found[name])


def _write_atomically(value: object, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)
