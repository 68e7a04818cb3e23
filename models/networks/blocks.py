"""The blocks of the networks, chosen for what INT8 kernels run well."""

from collections.abc import Sequence

import torch
from torch import nn

Size = int | tuple[int, int, int]


def conv_norm(
    inputs: int, outputs: int, kernel: Size, stride: Size = 1, *, relu: bool = True
) -> nn.Sequential:
    """Make convolution without bias, batch norm and ReLU; padding keeps the grid at stride 1."""
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    z, y, x = (size // 2 if size % 2 else 0 for size in sizes)
    parts: list[nn.Module] = [
        nn.Conv3d(inputs, outputs, kernel, stride, (z, y, x), bias=False),
        nn.BatchNorm3d(outputs),
    ]
    return nn.Sequential(*parts, nn.ReLU(inplace=True)) if relu else nn.Sequential(*parts)


def patchify(inputs: int, outputs: int) -> nn.Sequential:
    """Make a layer that turns each 2 x 2 x 2 patch into one voxel of ``outputs`` channels."""
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
        """Map ``(n, c, z, y, x)`` to the same shape."""
        return torch.relu(x + self.second(self.first(x)))


def residuals(channels: int, inner: Sequence[int]) -> list[nn.Module]:
    """Return factored residual blocks with these channels inside each."""
    return [Residual(channels, factored=True, inner=width) for width in inner]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Double the grid by nearest neighbours."""
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
