"""The blocks that the networks are made of, chosen for what INT8 kernels run well."""

from __future__ import annotations

import torch
from torch import nn

Size = int | tuple[int, int, int]


def conv_norm(
    inputs: int, outputs: int, kernel: Size, stride: Size = 1, *, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm and ReLU; padded to keep the grid at stride 1."""
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    z, y, x = (size // 2 if size % 2 else 0 for size in sizes)
    parts: list[nn.Module] = [
        nn.Conv3d(inputs, outputs, kernel, stride, (z, y, x), bias=False),
        nn.BatchNorm3d(outputs),
    ]
    return nn.Sequential(*parts, nn.ReLU(inplace=True)) if relu else nn.Sequential(*parts)


def patchify(inputs: int, outputs: int) -> nn.Sequential:
    """Halves the grid: each 2 x 2 x 2 patch becomes one voxel of ``outputs`` channels."""
    return conv_norm(inputs, outputs, 2, 2)


class Residual(nn.Module):
    """x + f(x), f two convolutions of ``channels``; `factored` makes them 1x3x3 and 3x1x1.

    The factored pair has 12/27 of the multiply-adds of one full 3 x 3 x 3 convolution and one
    non-linearity more. Between the two are ``inner`` channels: as many as outside, if None.
    """

    def __init__(self, channels: int, *, factored: bool = False, inner: int | None = None) -> None:
        super().__init__()
        inner = channels if inner is None else inner
        first: Size = (1, 3, 3) if factored else 3
        second: Size = (3, 1, 1) if factored else 3
        self.first = conv_norm(channels, inner, first)
        self.second = conv_norm(inner, channels, second, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, c, z, y, x)`` to the same shape."""
        return torch.relu(x + self.second(self.first(x)))
