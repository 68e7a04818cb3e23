"""How much weights and channels matter: what the loss would change if they went, to first order.

Source: Molchanov et al., arXiv:1906.10771 (importance of weights and of gates behind batch norm).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice

import torch
from rich.progress import track
from torch import nn

from models.compression.prune_channels import axes
from models.compression.prune_weights import prunable
from models.training.loop import Task


def slopes(task: Task, count: int, seed: int = 0) -> Iterator[nn.Module]:
    """A copy of the task's network with the gradient of one batch, ``count`` times."""
    network = copy.deepcopy(task.network).train()
    device = next(network.parameters()).device
    for batch in track(islice(task.batches(seed), count), "weighing weights", count):
        moved = {name: value.to(device) for name, value in batch.items()}
        network.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            terms = task.losses(network, moved)
        torch.stack(list(terms.values())).sum().backward()
        yield network


def weight_scores(task: Task, count: int) -> dict[str, torch.Tensor]:
    """Mean ``|w g|`` of every weight that may go, over ``count`` batches."""
    sums: dict[str, torch.Tensor] = {}
    for network in slopes(task, count):
        for name, conv in prunable(network).items():
            assert conv.weight.grad is not None  # every convolution is used
            change = (conv.weight * conv.weight.grad).detach().abs()
            sums[name] = sums[name] + change if name in sums else change
    return {name: total / count for name, total in sums.items()}


def channel_scores(task: Task, count: int) -> dict[str, torch.Tensor]:
    """Mean square of the change if a channel were zero, for each group of `prune_channels`.

    A channel is shut by scale and shift of every batch norm that writes to it, and by the
    weights of a lateral, which has none behind it.
    """
    sums: dict[str, torch.Tensor] = {}
    for network in slopes(task, count):
        gates: dict[str, torch.Tensor] = {}
        for name, weight in network.named_parameters():
            group = axes(name)[0]
            if group is None or weight.grad is None or not writes(name, weight):
                continue
            change = (weight * weight.grad).detach().flatten(1 if weight.ndim > 1 else 0)
            change = change.sum(1) if change.ndim > 1 else change
            gates[group] = gates[group] + change if group in gates else change
        for group, gate in gates.items():
            sums[group] = sums[group] + gate**2 if group in sums else gate**2
    return {group: total / count for group, total in sums.items()}


def writes(name: str, weight: torch.Tensor) -> bool:
    """Whether this parameter alone can shut the channels that it writes to."""
    return weight.ndim == 1 or name.startswith("lateral")
