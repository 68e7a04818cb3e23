"""Ways to train the hybrid network in less memory, each put onto a network that is there.

- ``checkpointing``: a block keeps its input only; what is inside is computed again on the way back
  (Chen et al., arXiv:1604.06174).
- ``recomputation``: convolutions and matrix products are kept, what is cheap is computed again:
  norms, ReLU, GELU, soft-max, sums (selective recomputation, Korthikanti et al., arXiv:2205.05198).
- ``bf16``: the pass forward under autocast; weights and optimiser stay float32.
- ``sharing``: one encoder layer's weights for all layers (ALBERT, Lan et al., arXiv:1909.11942).
- ``buffers``: input and gradients live in buffers that are made once and used again.
- ``allocator``: the C library keeps freed memory for the next tensor; set for a whole process.

What is computed again meets its batch norms twice, so their running statistics move twice in a
step; losses and gradients are those of the batch and stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from models.networks.hybrid import EncoderLayer, HybridNetwork
from models.networks.layers import Residual

COSTLY = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
]
"""What ``recomputation`` keeps the results of."""

STEMS = ("fine2.0", "fine4", "join4")
"""Blocks that are neither `Residual` nor `EncoderLayer`."""


def checkpoint_blocks(network: HybridNetwork) -> None:
    """Every trained block keeps its input and nothing else."""
    _wrap(network, checkpoint)


def recompute_cheap(network: HybridNetwork) -> None:
    """Every trained block keeps its input and what `COSTLY` operators gave."""
    contexts = partial(create_selective_checkpoint_contexts, COSTLY)
    _wrap(network, partial(checkpoint, context_fn=contexts))


def share_encoder(network: HybridNetwork) -> None:
    """All encoder layers become the first one."""
    network.encoder = nn.Sequential(*[network.encoder[0]] * len(network.encoder))


def blocks(network: HybridNetwork) -> list[nn.Module]:
    """The blocks that are trained, each once."""
    return [
        module
        for name, module in network.named_modules()
        if (isinstance(module, Residual | EncoderLayer) or name in STEMS)
        and any(weight.requires_grad for weight in module.parameters())
    ]


def _wrap(network: HybridNetwork, through: Callable[..., Any]) -> None:
    for block in blocks(network):
        block.forward = partial(through, block.forward, use_reentrant=False)


class GradientBuffer:
    """One buffer that the gradients of all trained weights are views of."""

    def __init__(self, network: nn.Module) -> None:
        self._weights = [p for p in network.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self._weights)
        self._flat = torch.zeros(total, device=self._weights[0].device)

    def clear(self) -> None:
        """Zeroes the buffer; the gradients are views of it afterwards, wherever they were."""
        self._flat.zero_()
        at = 0
        for weight in self._weights:
            weight.grad = self._flat[at : at + weight.numel()].view_as(weight)
            at += weight.numel()


class InputBuffer:
    """One buffer for the network's input, filled anew for every batch."""

    def __init__(self, like: torch.Tensor) -> None:
        self._unit = torch.empty(like.shape, device=like.device)

    def fill(self, voxels: torch.Tensor) -> torch.Tensor:
        """``voxels`` uint8 as float in [0, 1], of the shape that the buffer was made for."""
        return self._unit.copy_(voxels).div_(255)
