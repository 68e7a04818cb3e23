"""Training with weights left out: a mask for each convolution, kept, or moved while it learns.

With a `Regrow` the masks move as in RigL (Evci et al., arXiv:1911.11134): every few steps the
smallest weights of each layer go, and as many others come, at zero, where the gradient is largest.
The number of weights of each layer stays what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from models.training.data import Batch
from models.training.loop import Task

Masks = Mapping[str, torch.Tensor]
"""By the name of a parameter: bool of its shape, True where the weight is there."""


@dataclass(frozen=True)
class Regrow:
    """How the masks move: ``share`` of each layer every ``every`` steps, less and less.

    The share falls with a cosine to nothing at ``until`` of the run's ``seconds``, after which
    the masks stand still.
    """

    seconds: float
    every: int = 10
    share: float = 0.3
    until: float = 0.75

    def share_at(self, spent_s: float) -> float:
        """The share that moves after so long; 0 from ``until`` on."""
        progress = min(spent_s / (self.until * self.seconds), 1.0)
        return self.share / 2 * (1 + math.cos(math.pi * progress))


class SparseTask:
    """A task whose network keeps the weights that the masks leave out at zero."""

    def __init__(
        self,
        task: Task,
        masks: Masks,
        regrow: Regrow | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network = task.network
        self.masks = dict(masks)
        self._task, self._regrow, self._clock = task, regrow, clock
        self._steps, self._began = 0, math.nan
        self._slopes: dict[str, torch.Tensor] = {}
        leave_out(self.network, self.masks)
        for name, weight in self.network.named_parameters():
            if name in self.masks:
                weight.register_hook(partial(self._masked, name))

    def batches(self, seed: int) -> Iterator[Batch]:
        """The task's."""
        return self._task.batches(seed)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The task's, after the masks have been moved if it is time, and applied."""
        if self._slopes:
            self._move(network)
        leave_out(network, self.masks)
        self._began = self._clock() if self._steps == 0 else self._began
        self._steps += 1
        return self._task.losses(network, batch)

    def refresh(self, network: nn.Module) -> None:
        """The task's."""
        self._task.refresh(network)

    def judge(self, network: nn.Module) -> dict[str, float]:
        """The task's figures; an average still holds what was left out on the way, so mask it."""
        leave_out(network, self.masks)
        return self._task.judge(network)

    def _masked(self, name: str, slope: torch.Tensor) -> torch.Tensor:
        if self._regrow is not None and self._steps % self._regrow.every == 0:
            self._slopes[name] = slope.detach().clone()
        self.masks[name] = self.masks[name].to(slope.device)
        return slope * self.masks[name]

    def _move(self, network: nn.Module) -> None:
        assert self._regrow is not None  # without it no slope is kept
        share = self._regrow.share_at(self._clock() - self._began)
        weights = dict(network.named_parameters())
        for name, slope in self._slopes.items():
            self.masks[name] = moved(self.masks[name], weights[name].detach(), slope, share)
        self._slopes = {}


def leave_out(network: nn.Module, masks: Masks) -> None:
    """Sets the weights that the masks leave out to zero, in place."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in masks:
                weight.mul_(masks[name].to(weight.device))


def moved(
    mask: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor, share: float
) -> torch.Tensor:
    """The mask without ``share`` of its smallest weights and with as many of the steepest others.

    All of one shape. A gradient that is not finite moves nothing.
    """
    kept, size = mask.flatten(), weight.abs().flatten()
    steep = slope.abs().flatten()
    count = min(int(share * int(kept.sum())), int((~kept).sum()))
    if count == 0 or not torch.isfinite(steep).all():
        return mask
    gone = torch.where(kept, size, torch.inf).topk(count, largest=False).indices
    come = torch.where(kept, -torch.inf, steep.to(size.dtype)).topk(count).indices
    new = kept.clone()
    new[gone], new[come] = False, True
    return new.view_as(mask)
