"""Pruning of single weights: masks that say which stay, and training under a mask.

Zeros among the weights make a network smaller on disk; an engine that multiplies dense tensors
takes as long as before.

Importance is the change of the loss if a weight went, to first order (Molchanov et al.,
arXiv:1906.10771). Masks may move as in RigL (Evci et al., arXiv:1911.11134): every few steps the
smallest weights of each layer go, and as many others come, at zero, where the gradient is largest.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from models.pruning.channels import gradients
from models.training.data import Batch
from models.training.loop import Task

Scores = Mapping[str, Tensor]
"""By the name of a weight: the importance of each of its elements, of its shape."""

Masks = Mapping[str, Tensor]
"""By the name of a parameter: bool of its shape, True where the weight stays."""

EVERY, SHARE, UNTIL = 10, 0.3, 0.75
"""Steps between two moves of the masks, the first share that moves, and the part of the run after
which nothing does."""


def prunable(network: nn.Module) -> dict[str, nn.Conv3d]:
    """Return the convolutions whose weights may be pruned, by the name of their weight.

    The last layers stay whole: they are small, and everything passes through them.
    """
    return {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and name not in ("head", "share")
    }


def weight_scores(task: Task, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the mean ``|w g|`` of every prunable weight over ``count`` batches."""
    sums: dict[str, Tensor] = {}
    for network in gradients(task, count, seed):
        for name, conv in prunable(network).items():
            assert conv.weight.grad is not None  # every convolution is used
            sums[name] = sums.get(name, 0) + (conv.weight * conv.weight.grad).detach().abs()
    return {name: total / count for name, total in sums.items()}


def importance_masks(network: nn.Module, scores: Scores, share: float) -> dict[str, Tensor]:
    """Return masks without the least important ``share`` of all the network's parameters.

    Importance is compared over all layers at once.
    """
    convolutions = prunable(network)
    flat = torch.cat([scores[name].flatten() for name in convolutions])
    stays = torch.ones_like(flat, dtype=torch.bool)
    stays[flat.topk(_to_remove(network, convolutions, share), largest=False).indices] = False
    parts = stays.split([scores[name].numel() for name in convolutions])
    return {n: part.view_as(scores[n]) for n, part in zip(convolutions, parts, strict=True)}


def random_masks(network: nn.Module, share: float, seed: int) -> dict[str, Tensor]:
    """Return masks without ``share`` of all parameters, drawn by ``seed`` in each layer.

    How many weights a layer keeps says `erdos_renyi`.
    """
    convolutions = prunable(network)
    left = erdos_renyi(
        {name: tuple(conv.weight.shape) for name, conv in convolutions.items()},
        _to_remove(network, convolutions, share),
    )
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, conv in convolutions.items():
        # the weights with the lowest numbers of a random order stay
        order = torch.randperm(conv.weight.numel(), generator=generator)
        masks[name] = (order < left[name]).view(conv.weight.shape)
    return masks


def erdos_renyi(shapes: Mapping[str, tuple[int, ...]], to_remove: int) -> dict[str, int]:
    """Return how many weights each layer keeps if ``to_remove`` of all of them go.

    A layer's density grows with the sum of its sides over their product: small layers stay
    denser. Source: the kernel form of Erdős–Rényi, Evci et al., arXiv:1911.11134, section 3.
    """
    sizes = np.array([math.prod(shape) for shape in shapes.values()])
    odds = np.array([float(sum(shape)) for shape in shapes.values()])  # of a layer's kept weights
    left, full = sizes.sum() - to_remove, np.zeros(len(sizes), bool)
    # a layer that would keep more than it has is kept whole, and the others share the rest
    while True:
        scale = (left - sizes[full].sum()) / max(odds[~full].sum(), 1.0)
        over = ~full & (scale * odds > sizes)
        if not over.any():
            break
        full |= over
    # what rounding down left over goes to the layers with most room
    kept = np.where(full, sizes, np.floor(scale * odds)).astype(int)
    room = np.where(full, 0, kept - sizes)
    kept[room.argsort(kind="stable")[: left - kept.sum()]] += 1
    return dict(zip(shapes, kept.tolist(), strict=True))


def _to_remove(network: nn.Module, convolutions: Mapping[str, nn.Conv3d], share: float) -> int:
    wanted = round(share * sum(p.numel() for p in network.parameters()))
    return min(wanted, sum(conv.weight.numel() for conv in convolutions.values()))


def share_at(step: int, steps: int) -> float:
    """Return the share of each layer that moves after that many of ``steps``; it falls to 0."""
    return SHARE / 2 * (1 + math.cos(math.pi * min(step / (UNTIL * steps), 1.0)))


class SparseTask:
    """A task whose network keeps the masked weights at zero.

    With ``moves_in`` the masks move in a run of that number of steps.
    """

    def __init__(self, task: Task, masks: Masks, moves_in: int = 0) -> None:
        self.network, self.batches = task.network, task.batches
        self.masks = dict(masks)
        self._task, self._moves_in, self._steps = task, moves_in, 0
        self._gradients: dict[str, Tensor] = {}
        apply_masks(self.network, self.masks)
        for name, weight in self.network.named_parameters():
            if name in self.masks:
                weight.register_hook(partial(self._mask_gradient, name))

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the task's losses, after the masks have moved if it is time and were applied."""
        # the gradients are those of the last step, before its update: the masks move between steps
        if self._gradients:
            share = share_at(self._steps, self._moves_in)
            weights = dict(network.named_parameters())
            for name, gradient in self._gradients.items():
                self.masks[name] = moved(self.masks[name], weights[name].detach(), gradient, share)
            self._gradients = {}
        apply_masks(network, self.masks)
        self._steps += 1
        return self._task.losses(network, batch)

    def _mask_gradient(self, name: str, gradient: Tensor) -> Tensor:
        if self._moves_in and self._steps % EVERY == 0:
            # noted before it is masked: of a weight that is out it says how much it would help
            self._gradients[name] = gradient.detach().clone()
        self.masks[name] = self.masks[name].to(gradient.device)
        return gradient * self.masks[name]


def apply_masks(network: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero, in place."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in masks:
                weight.mul_(masks[name].to(weight.device))


def moved(mask: Tensor, weight: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Swap ``share`` of the mask's smallest weights for as many of the largest gradient elsewhere.

    All arguments are of one shape. A gradient that is not finite moves nothing.
    """
    kept, size, steep = mask.flatten(), weight.abs().flatten(), gradient.abs().flatten()
    count = min(int(share * int(kept.sum())), int((~kept).sum()))
    if count == 0 or not torch.isfinite(steep).all():
        return mask
    # weights that are out already never go, and those that are in never come
    gone = torch.where(kept, size, torch.inf).topk(count, largest=False).indices
    come = torch.where(kept, -torch.inf, steep.to(size.dtype)).topk(count).indices
    new = kept.clone()
    new[gone], new[come] = False, True
    return new.view_as(mask)
