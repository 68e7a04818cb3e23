"""Fake quantisation with learned ranges: rounds going forward, passes gradients going back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _Rounded(torch.autograd.Function):
    """``scale * clamp(round(x / scale), low, high)``; gradients to ``x`` and to ``scale``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        steps = x / scale.to(x.dtype)
        level = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, level, scale)
        return level * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        steps, level, scale = ctx.saved_tensors
        inside = (steps - level).abs_() <= 0.5
        lost = torch.where(inside, level - steps, level) * gradient
        to_scale = lost.float().sum_to_size(scale.shape)
        return gradient * inside, to_scale, None, None


def rounded(x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """``x`` on the levels ``low`` to ``high`` of ``scale``, which broadcasts against it.

    Source: LSQ (Esser et al., arXiv:1902.08153): the gradient to the scale is what rounding loses
    within the range, and the end of the range beyond it.
    """
    apply: Callable[..., torch.Tensor] = _Rounded.apply
    return apply(x, scale, low, high)


class Rounding(nn.Module):
    """Rounds to the levels of an unsigned or signed integer with a learned, positive scale.

    The logarithm is learnt, so that a step changes the scale by a share of itself. Levels are
    counted from the zero point: ``low`` and ``high`` are the type's bounds less the zero point.
    """

    def __init__(self, scale: torch.Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log_scale = nn.Parameter(scale.clamp(min=1e-12).log())

    @property
    def scale(self) -> torch.Tensor:
        """What a level is worth."""
        return self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` rounded; same shape."""
        return rounded(x, self.scale, self.low, self.high)


def best_scale(weight: torch.Tensor, high: int, axis: int = 0) -> torch.Tensor:
    """For each channel along ``axis`` the scale that loses least, ``(channels,)``.

    The mean square error decides among 40 shares of the channel's largest weight: with few bits
    it pays to clip the outermost.
    """
    rows = weight.movedim(axis, 0).flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    tried = [most * share / high for share in torch.linspace(0.4, 1.0, 40).tolist()]
    lost = torch.stack([(rounded(rows, s, -high - 1, high) - rows).square().sum(1) for s in tried])
    return torch.stack(tried)[lost.argmin(0), torch.arange(len(rows)), 0]
