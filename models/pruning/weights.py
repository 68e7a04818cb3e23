"""Which single weights stay: by importance over the whole network, or a layer's share at random.

The masks are for `models.pruning.sparse`. They make a network smaller on disk and in theory;
an engine that multiplies dense tensors takes as long as before.

How much weights and channels matter: what the loss would change if they went, to first order.

Source: Molchanov et al., arXiv:1906.10771 (importance of weights and of gates behind batch norm).

The ways to prune, each from the same start: a task that fine-tunes what is left.

- ``control``: nothing goes.
- ``weights``: the least important single weights of the whole network, once (Taylor).
- ``channels``: whole channels, once (Taylor of gates); the network becomes smaller.
- ``dynamic``: a random part of each layer (Erdős–Rényi), which then moves while it learns (RigL).
- ``dynamic-trained``: the same, starting from each layer's largest weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import torch
from rich.progress import track
from torch import nn
from torch.nn.utils import prune

from models.networks.screening import ScreeningNetwork
from models.pruning.channels import axes, choose, cut
from models.pruning.sparse import Regrow, SparseTask
from models.training.loop import Task
from models.training.screening import ScreeningTask

Scores = Mapping[str, torch.Tensor]
"""By the name of a weight: how much each of its elements matters, of its shape."""

ANSWERS = ("head", "share")
"""The last layers stay whole: they are small, and everything passes through them."""


def prunable(network: nn.Module) -> dict[str, nn.Conv3d]:
    """The convolutions that single weights are taken from, by the name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and name not in ANSWERS
    }


def most_important(network: nn.Module, scores: Scores, share: float) -> dict[str, torch.Tensor]:
    """Masks that leave out ``share`` of all the network's parameters, the least important first.

    Importance is compared over all layers at once.
    """
    network = copy.deepcopy(network)
    convolutions = prunable(network)
    prune.global_unstructured(
        [(conv, "weight") for conv in convolutions.values()],
        pruning_method=prune.L1Unstructured,
        importance_scores={(conv, "weight"): scores[n] for n, conv in convolutions.items()},
        amount=_to_go(network, convolutions, share),
    )
    masks = {name: conv.get_buffer("weight_mask").bool() for name, conv in convolutions.items()}
    return {name: mask.contiguous() for name, mask in masks.items()}


def drawn(
    network: nn.Module, share: float, scores: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Masks that leave out ``share`` of all parameters, each layer's part by Erdős–Rényi.

    In a layer those stay that ``scores`` of its weight puts highest; `at_random` is one.
    """
    convolutions = prunable(network)
    left = erdos_renyi(
        {name: tuple(conv.weight.shape) for name, conv in convolutions.items()},
        _to_go(network, convolutions, share),
    )
    masks = {}
    for name, conv in convolutions.items():
        order = scores(conv.weight.detach()).flatten().argsort(descending=True)
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[: left[name]].cpu()] = True
        masks[name] = mask.view(conv.weight.shape)
    return masks


def at_random(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Scores without meaning, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda weight: torch.rand(weight.shape, generator=generator)


def erdos_renyi(shapes: Mapping[str, tuple[int, ...]], to_go: int) -> dict[str, int]:
    """How many weights each layer keeps when ``to_go`` of all of them go.

    A layer's density grows with the sum of its sides over their product: small layers stay
    denser. Source: the kernel form of Erdős–Rényi, Evci et al., arXiv:1911.11134, section 3.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    odds = {name: float(sum(shape)) for name, shape in shapes.items()}  # of a layer's kept weights
    left, full = sum(sizes.values()) - to_go, set[str]()
    while True:
        open_layers = [name for name in sizes if name not in full]
        spare = left - sum(sizes[name] for name in full)
        scale = spare / max(sum(odds[name] for name in open_layers), 1.0)
        over = {name for name in open_layers if scale * odds[name] > sizes[name]}
        if not over:
            break
        full |= over
    kept = {n: sizes[n] if n in full else math.floor(scale * odds[n]) for n in sizes}
    short = left - sum(kept.values())
    for name in sorted(open_layers, key=lambda n: sizes[n] - kept[n], reverse=True)[:short]:
        kept[name] += 1
    return kept


def _to_go(network: nn.Module, convolutions: Mapping[str, nn.Conv3d], share: float) -> int:
    wanted = round(share * sum(p.numel() for p in network.parameters()))
    return min(wanted, sum(conv.weight.numel() for conv in convolutions.values()))


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


CONTROL = "control"
WAYS = ("weights", "channels", "dynamic", "dynamic-trained")
USUAL = WAYS[:3]

BATCHES = 32
"""Batches that importance is averaged over."""


def pruned(
    task: ScreeningTask, way: str, share: float, minutes: float, *, seed: int, count: int = BATCHES
) -> Task:
    """A task with ``share`` of the parameters gone from a copy of the task's network.

    Raises:
        CannotPrune: so many channels cannot go.
        KeyError: there is no such way.
    """
    network = copy.deepcopy(task.network)
    assert isinstance(network, ScreeningNetwork)
    own = replace(task, network=network)
    if way == CONTROL:
        return own
    if way == "channels":
        keep = choose(network.state_dict(), channel_scores(own, count), share)
        return replace(own, network=cut(network, keep))
    if way == "weights":
        return SparseTask(own, most_important(network, weight_scores(own, count), share))
    scores = {"dynamic": at_random(seed), "dynamic-trained": torch.abs}[way]
    return SparseTask(own, drawn(network, share, scores), Regrow(seconds=60 * minutes))
