"""The training loop: a budget in steps, resumable, averaged weights, a GPU if there is one.

It does not know what it trains: a `Task` gives batches and losses. A run is made of rounds. At the
end of each it is measured on validation, logged and saved, and the next one draws samples with a
seed of its own. So a run that was interrupted, and goes on from its last round, takes the same
steps as one that was not.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import Progress, track
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.runtime.errors import DamagedArtifact, ModelFailed, UnfitArtifact
from models.runtime.hardware import cpu_name
from models.training.data import Batch
from models.training.run_folder import (
    CHECKPOINT,
    LOG,
    WEIGHTS,
    read_log,
    require_same,
    write_atomically,
    write_log,
)

_PARTS, _COUNTS = ("network", "averaged", "optimizer"), ("core_s", "steps", "skipped")
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
        """Adapt later batches to the averaged network; called before every round but the first."""
        ...

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return figures of the averaged network on validation material."""
        ...


@dataclass(frozen=True)
class Plan:
    """The parameters of a run. ``steps`` are taken in all, those before an interruption included.

    ``average``: the share of the steps that the averaged weights reach back. ``round_steps``: the
    steps of a round. ``half``: products are computed in bfloat16, which is
    four to five times as fast. ``resume``: go on from the last round in ``out``, if there is one.
    ``facts`` come with every line of the log: what is trained on, and the weights that it began
    from.
    """

    out: Path
    steps: int
    rate: float = 3e-3
    decay: float = 0.02
    warm_up: float = 0.03
    average: float = 0.03
    round_steps: int = 500
    seed: int = 0
    half: bool = True
    resume: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def same(self) -> dict[str, Any]:
        """Return what must be the same to resume a run."""
        left_out = ("out", "resume", "facts")
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {**own, **self.facts}


class State:
    """What a run carries from step to step; ``decay`` is that of the average of the weights."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.network, self.optimizer = network, optimizer
        average = get_ema_multi_avg_fn(decay)
        self.averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self.core_s, self.steps, self.skipped = 0.0, 0, 0

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

    def write(self, path: Path, plan: dict[str, Any]) -> None:
        """Write a checkpoint of the run with that plan."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        save(parts | {name: getattr(self, name) for name in _COUNTS} | {"plan": plan}, path)

    def restore(self, path: Path, plan: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UnfitArtifact: it is of a run with another plan, or of another network.
            DamagedArtifact: it cannot be read.
        """
        found = load(path, next(self.network.parameters()).device)
        require_same(path, found.get("plan", {}), plan)
        try:
            for name in _PARTS:
                getattr(self, name).load_state_dict(found[name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UnfitArtifact(f"{path}: of a network of another size") from error
        for name in _COUNTS:
            setattr(self, name, found[name])


def train(task: Task, plan: Plan) -> nn.Module:
    """Train ``plan.steps`` and return the averaged network.

    After each round the folder ``plan.out`` has a checkpoint (`last.pt`), the averaged weights
    (`averaged.pt`), and a further line in `log.jsonl`.

    Raises:
        UnfitArtifact: the folder holds a run, which is another one or is not to be resumed.
    """
    # read at the start: the checkout may change while the run goes on
    stated = {**plan.facts, "commit": commit(), "machine": machine()}
    network = placed(task.network)
    # weight decay is for weights; biases and norms have no reason to be small
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    state = State(network, optimizer, 1 - 1 / max(plan.average * plan.steps, 10.0))
    checkpoint, weights = plan.out / CHECKPOINT, plan.out / WEIGHTS
    if plan.resume and checkpoint.exists():
        state.restore(checkpoint, plan.same())
    elif not plan.resume and (read_log(plan.out) or checkpoint.exists() or weights.exists()):
        raise UnfitArtifact(f"{plan.out}: it holds a run; expected --resume or a new folder")
    elif len(read_log(plan.out)) > 1:  # the first round is logged before it is saved
        raise UnfitArtifact(f"{plan.out}: {CHECKPOINT} is missing; restore it, or use a new folder")
    # a round that was logged and not saved is taken again
    rounds = [one for one in read_log(plan.out) if one["steps"] <= state.steps]
    if state.steps and (not rounds or rounds[-1]["steps"] != state.steps):
        raise UnfitArtifact(f"{plan.out / LOG}: lacks the round that ended at step {state.steps}; "
                            "restore it, or use a new folder")  # fmt: skip
    write_log(plan.out, rounds)
    with Progress() as progress:
        bar = progress.add_task("training", total=plan.steps, completed=state.steps)
        while state.steps < plan.steps:
            line = _round(task, plan, state, lambda: progress.advance(bar))
            save(state.average().state_dict(), weights)
            write_log(plan.out, [*read_log(plan.out), {**stated, **line}])
            state.write(checkpoint, plan.same())
    if not weights.exists():  # lost since the last round
        save(state.average().state_dict(), weights)
    return state.average()


def fine_tune(
    network: nn.Module, batches: Iterator[Batch], losses: Losses, *, steps: int, rate: float
) -> nn.Module:
    """Return the average after ``steps`` steps of a rate that rises to ``rate`` and falls."""
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


def _round(task: Task, plan: Plan, state: State, advance: Callable[[], None]) -> dict[str, Any]:
    """Take the steps up to the end of a round.

    Return the means of its losses, and the figures of the averaged network on validation.
    """
    if state.steps:
        task.refresh(state.average())
    before, last = _core_s(), min(plan.steps, state.steps + plan.round_steps)
    # no round of another seed has the samples of this one
    seed = int(np.random.SeedSequence((plan.seed, state.steps)).generate_state(1)[0])
    torch.manual_seed(seed)
    batches, terms = task.batches(seed), list[dict[str, float]]()
    while state.steps < last:
        rate = plan.rate * schedule(state.steps / plan.steps, plan.warm_up)
        terms.append(state.step(task.losses, next(batches), rate, half=plan.half))
        advance()
    del batches  # ends its processes, so that their time counts
    state.core_s += _core_s() - before
    finite = [one for one in terms if one]
    if not finite:
        raise ModelFailed(f"{plan.out}: no gradient of a round was finite; lower the rate")
    figures = task.evaluate(state.average())
    return {
        "steps": state.steps,
        "core_hours": round(state.core_s / 3600, 4),
        "skipped": state.skipped,
        "seed": plan.seed,
        **{f"loss_{n}": round(float(np.mean([one[n] for one in finite])), 5) for n in finite[0]},
        **{name: round(value, 4) for name, value in figures.items()},
    }


def _core_s() -> float:
    """Return the time that this process and the ended ones below it have kept cores busy."""
    return sum(os.times()[:4])


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


def machine() -> str:
    """Return the GPU's name or the processor's, and torch's version."""
    gpu = torch.cuda.is_available()
    found = torch.cuda.get_device_name() if gpu else cpu_name()
    return f"{found}, torch {torch.__version__}"


def commit() -> str:
    """Return the commit of this checkout, with ``-dirty`` where files differ; else ''."""
    line = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        found = subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return found.stdout.strip()


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the weights or the checkpoint in a file.

    Raises:
        DamagedArtifact: it holds none.
    """
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except Exception as error:  # torch, pickle and zip have many
        told = getattr(error, "strerror", None) or type(error).__name__
        raise DamagedArtifact(f"{path}: no weights of a run, or damaged: {told}") from error


def save(value: object, path: Path) -> None:
    """Write weights or a checkpoint."""
    write_atomically(path, lambda file: torch.save(value, file))
