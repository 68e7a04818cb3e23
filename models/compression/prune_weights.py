"""Which single weights stay: by importance over the whole network, or a layer's share at random.

The masks are for `models.training.sparse`. They make a network smaller on disk and in theory;
an engine that multiplies dense tensors takes as long as before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils import prune

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
