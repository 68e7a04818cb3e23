"""Pruning of whole channels: a smaller screening network that loads and exports as any other.

Channels that are added to each other go together. A group is a stage (its stem, the outputs of its
blocks, what is added on the way back) or the inside of one residual block.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from imaging.volume import FloatArray
from models.networks.screening import DOWN, ScreeningNetwork, ScreeningSpec
from models.runtime.errors import ModelError, UnfitArtifact
from models.training.loop import Task, fine_tune, save, terms_of
from models.training.run_folder import LOG, WEIGHTS
from models.training.runs import Run, trained_task
from models.training.screening import ScreeningTask

STAGES = ("half", "quarter", "eighth", "sixteenth")

STEP = 16
"""Channels go in steps of this: INT8 kernels work in blocks of 16."""

BATCHES = 32
"""Batches that importance is averaged over."""

_GROUPS = {
    "stem": ("half", ""),
    "lateral8": ("eighth", "sixteenth"),
    "lateral4": ("quarter", "eighth"),
    "head": ("", "quarter"),
    "share": ("", "quarter"),
    **{part: (STAGES[i + 1], STAGES[i]) for i, part in enumerate(DOWN)},
    "smooth": ("quarter", ""),
}
"""The groups that each part writes to and reads from; empty: of no group."""

_STRIDE = {"stem": 2, "down4": 4, "down8": 8, "down16": 16, "lateral8": 16, "lateral4": 8}
"""Voxels of the box per cell of the grid that a part computes on, along each axis; else 4."""


class CannotPrune(ModelError):
    """The share of parameters cannot be removed; the message says how much can."""


def run_pruned(run: Run, share: float) -> dict[str, Any]:
    """Prune and fine-tune; `averaged.pt` in ``run.out`` starts runs as any other.

    Returns what is left, and the figures on validation before and after fine-tuning.

    Raises:
        UnfitArtifact: the folder holds a run.
    """
    if any((run.out / name).exists() for name in (WEIGHTS, LOG)):
        raise UnfitArtifact(f"{run.out}: it holds a run; expected a new folder")
    task = without_channels(trained_task(run), share, run.seed)
    before = task.evaluate(task.network.eval())
    batches = task.batches(run.seed)
    network = fine_tune(task.network, batches, task.losses, steps=run.steps, rate=run.rate)
    save(network.state_dict(), run.out / WEIGHTS)
    return {
        "share": share,
        "before": before,
        "after": task.evaluate(network),
        "weights": str(run.out / WEIGHTS),
        "spec": asdict(ScreeningSpec.of(network.state_dict())),
    }


def without_channels(task: ScreeningTask, share: float, seed: int) -> ScreeningTask:
    """Return the task on a smaller network: ``share`` of the parameters is gone.

    Raises:
        CannotPrune: that share cannot go.
    """
    assert isinstance(task.network, ScreeningNetwork)
    keep = choose(task.network.state_dict(), channel_scores(task, BATCHES, seed), share)
    return replace(task, network=cut(task.network, keep))


def groups_of(name: str) -> tuple[str, str]:
    """Return the groups that a weight of that name writes to and reads from, empty if none."""
    # the first convolution of a block writes to its inside, the second reads it and writes to the
    # stage, whose outputs are added to each other and so share their channels
    part, *rest = name.split(".")
    writes, reads = _GROUPS[part]
    block = f"{part}.{rest[0]}" if part in DOWN else part
    if "first" in rest:
        return block, writes
    return (writes, block) if "second" in rest else (writes, reads)


def stride_of(name: str) -> int:
    """Return the voxels along an axis for each cell of the grid that a weight computes on."""
    return _STRIDE.get(name.split(".")[0], 4)


def widths(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of channels of each group."""
    return {
        group: value.shape[0]
        for name, value in weights.items()
        if value.ndim and (group := groups_of(name)[0])
    }


def cut(network: ScreeningNetwork, keep: Mapping[str, Tensor]) -> ScreeningNetwork:
    """Return the network with only those channels, ``keep`` by group: indices in rising order."""
    kept = {}
    for name, value in network.state_dict().items():
        out, into = groups_of(name)
        if value.ndim and out in keep:
            value = value[keep[out]]
        if value.ndim > 1 and into in keep:
            value = value[:, keep[into]]
        kept[name] = value.clone()
    smaller = ScreeningNetwork(ScreeningSpec.of(kept)).to(next(network.parameters()).dtype)
    smaller.load_state_dict(kept)
    return smaller.train(network.training)


def cost(weights: Mapping[str, Tensor], width: Mapping[str, int]) -> FloatArray:
    """Return the cost of a network of these shapes with ``width`` channels in each group.

    It is ``(2,)``: parameters, and multiply-adds for each voxel of the box.
    """
    parameters, work = 0.0, 0.0
    for name, value in weights.items():
        if name.endswith(("running_mean", "running_var")) or not value.ndim:
            continue
        out, into = groups_of(name)
        # the shape's own count, scaled to the asked widths of output and input
        count = value.numel() / value.shape[0] * width.get(out, value.shape[0])
        if value.ndim > 1:
            count *= width.get(into, value.shape[1]) / value.shape[1]
            work += count / stride_of(name) ** 3
        parameters += count
    return np.array([parameters, work])


def choose(
    weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], share: float, step: int = STEP
) -> dict[str, Tensor]:
    """Return the channels of each group to keep so that ``share`` of the parameters goes.

    ``step`` channels go at a time: those of least score for their cost, which is their share of
    the parameters plus their share of the multiply-adds. ``step`` of each group stay.

    Raises:
        CannotPrune: that share cannot go.
    """
    order = {group: score.argsort(descending=True) for group, score in scores.items()}
    width = widths(weights)
    whole = now = cost(weights, width)

    def ratio(group: str) -> float:
        """Return what the last ``step`` channels score for what their removal saves."""
        then = cost(weights, width | {group: width[group] - step})
        last = order[group][width[group] - step : width[group]]
        return float(scores[group][last].sum()) / float(((now - then) / whole).sum())

    # greedily: the cheapest step for what it loses, measured again after each one
    while now[0] > (1 - share) * whole[0]:
        left = [group for group in order if width[group] >= 2 * step]
        if not left:
            raise CannotPrune(
                f"cannot remove {share:.0%} of the parameters in steps of {step} channels, at most "
                f"{1 - now[0] / whole[0]:.0%}"
            )
        width[min(left, key=ratio)] -= step
        now = cost(weights, width)
    return {group: rank[: width[group]].sort().values for group, rank in order.items()}


def gradients(task: Task, count: int, seed: int = 0) -> Iterator[nn.Module]:
    """Yield a copy of the task's network ``count`` times, each with the gradient of one batch."""
    network = copy.deepcopy(task.network).train()
    for batch in track(islice(task.batches(seed), count), "measuring importance", count):
        network.zero_grad()
        torch.stack(list(terms_of(task.losses, network, batch).values())).sum().backward()
        yield network


def channel_scores(task: Task, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the mean square change of the loss if a channel were zero, for each group.

    A channel is zero if scale and shift of every batch norm that writes to it are, and the
    weights of a lateral, which has no batch norm. Source: Molchanov et al., arXiv:1906.10771.
    """
    sums: dict[str, Tensor] = {}
    for network in gradients(task, count, seed):
        gates: dict[str, Tensor] = {}
        for name, weight in network.named_parameters():
            group = groups_of(name)[0]
            if not group or weight.grad is None or not is_gate(name, weight):
                continue
            # to first order the loss changes by weight times gradient if the weight becomes zero;
            # the gates of a channel shut together, so their changes add up before they are squared
            change = (weight * weight.grad).detach().flatten(1 if weight.ndim > 1 else 0)
            gates[group] = gates.get(group, 0) + (change.sum(1) if change.ndim > 1 else change)
        for group, gate in gates.items():
            sums[group] = sums.get(group, 0) + gate**2
    return {group: total / count for group, total in sums.items()}


def is_gate(name: str, weight: Tensor) -> bool:
    """Return whether this parameter alone can shut the channels that it writes to."""
    return weight.ndim == 1 or name.startswith("lateral")
