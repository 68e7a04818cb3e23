"""Pruning of whole channels: a smaller screening network that loads and exports as any other.

Channels that are added to each other go together. A group is a stage (its stem, the outputs of its
blocks, what is added on the way back) or the inside of one residual block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.networks.screening import DOWN, ScreeningNetwork, ScreeningSpec
from models.pruning.masks import gradients
from models.runtime.errors import ModelError
from models.training.loop import Task

STAGES = ("half", "quarter", "eighth", "sixteenth")

STEP = 16
"""Channels go in steps of this: INT8 kernels work in blocks of 16."""

_GROUPS = {
    "stem": ("half", None),
    "lateral8": ("eighth", "sixteenth"),
    "lateral4": ("quarter", "eighth"),
    "head": (None, "quarter"),
    "share": (None, "quarter"),
    **{part: (STAGES[i + 1], STAGES[i]) for i, part in enumerate(DOWN)},
    "smooth": ("quarter", None),
}
"""The groups that each part writes to and reads from."""

_STRIDE = {"stem": 2, "down4": 4, "down8": 8, "down16": 16, "lateral8": 16, "lateral4": 8}
"""Voxels of the box per cell of the grid that a part computes on, along each axis; else 4."""


class CannotPrune(ModelError):
    """The share of parameters cannot be removed; the message says how much can."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds for each voxel of the box."""

    parameters: float
    multiply_adds: float


def groups_of(name: str) -> tuple[str | None, str | None]:
    """Return the groups that a weight of that name writes to and reads from, None if none."""
    part, *rest = name.split(".")
    writes, reads = _GROUPS[part]
    block = f"{part}.{rest[0]}" if part in DOWN else part
    if "first" in rest:
        return block, writes
    return (writes, block) if "second" in rest else (writes, reads)


def widths(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of channels of each group."""
    return {
        group: value.shape[0]
        for name, value in weights.items()
        if value.ndim and (group := groups_of(name)[0]) is not None
    }


def cut(network: ScreeningNetwork, keep: Mapping[str, torch.Tensor]) -> ScreeningNetwork:
    """Return the network with only those channels, ``keep`` by group: indices in rising order."""
    kept = {}
    for name, value in network.state_dict().items():
        out, into = groups_of(name)
        if value.ndim and out is not None and out in keep:
            value = value[keep[out]]
        if value.ndim > 1 and into is not None and into in keep:
            value = value[:, keep[into]]
        kept[name] = value.clone()
    smaller = ScreeningNetwork(ScreeningSpec.of(kept)).to(next(network.parameters()).dtype)
    smaller.load_state_dict(kept)
    return smaller.train(network.training)


def cost(weights: Mapping[str, torch.Tensor], width: Mapping[str, int]) -> Cost:
    """Return the cost of a network of these shapes with ``width`` channels in each group."""
    parameters, work = 0.0, 0.0
    for name, value in weights.items():
        if name.endswith(("running_mean", "running_var")) or not value.ndim:
            continue
        out, into = groups_of(name)
        count = value.numel() / value.shape[0] * width.get(out or "", value.shape[0])
        if value.ndim > 1:
            count *= width.get(into or "", value.shape[1]) / value.shape[1]
            work += count / _STRIDE.get(name.split(".")[0], 4) ** 3
        parameters += count
    return Cost(parameters, work)


def choose(
    weights: Mapping[str, torch.Tensor],
    scores: Mapping[str, torch.Tensor],
    share: float,
    step: int = STEP,
) -> dict[str, torch.Tensor]:
    """Return the channels of each group to keep so that ``share`` of the parameters goes.

    ``step`` channels go at a time: those of least score for their cost, which is their share of
    the parameters plus their share of the multiply-adds. ``step`` of each group stay.

    Raises:
        CannotPrune: that share cannot go.
    """
    order = {group: score.argsort(descending=True) for group, score in scores.items()}
    width = widths(weights)
    whole = now = cost(weights, width)
    while now.parameters > (1 - share) * whole.parameters:
        # of every group, what its last ``step`` channels score for what their removal saves
        best, least = "", float("inf")
        for group in order:
            if width[group] < 2 * step:
                continue
            then = cost(weights, width | {group: width[group] - step})
            saved = (now.parameters - then.parameters) / whole.parameters
            saved += (now.multiply_adds - then.multiply_adds) / whole.multiply_adds
            last = order[group][width[group] - step : width[group]]
            if (ratio := float(scores[group][last].sum()) / saved) < least:
                best, least = group, ratio
        if not best:
            gone = 1 - now.parameters / whole.parameters
            raise CannotPrune(
                f"{share:.0%} of the parameters cannot go in steps of {step} channels, at most "
                f"{gone:.0%}"
            )
        width[best] -= step
        now = cost(weights, width)
    return {group: rank[: width[group]].sort().values for group, rank in order.items()}


def channel_scores(task: Task, count: int) -> dict[str, torch.Tensor]:
    """Return the mean square change of the loss if a channel were zero, for each group.

    A channel is zero if scale and shift of every batch norm that writes to it are, and the
    weights of a lateral, which has no batch norm. Source: Molchanov et al., arXiv:1906.10771.
    """
    sums: dict[str, torch.Tensor] = {}
    for network in gradients(task, count):
        gates: dict[str, torch.Tensor] = {}
        for name, weight in network.named_parameters():
            group = groups_of(name)[0]
            if group is None or weight.grad is None or not is_gate(name, weight):
                continue
            change = (weight * weight.grad).detach().flatten(1 if weight.ndim > 1 else 0)
            change = change.sum(1) if change.ndim > 1 else change
            gates[group] = gates[group] + change if group in gates else change
        for group, gate in gates.items():
            sums[group] = sums[group] + gate**2 if group in sums else gate**2
    return {group: total / count for group, total in sums.items()}


def is_gate(name: str, weight: torch.Tensor) -> bool:
    """Return whether this parameter alone can shut the channels that it writes to."""
    return weight.ndim == 1 or name.startswith("lateral")
