"""The blocks of the networks, chosen for what INT8 kernels run well, and those of the teachers."""

from collections.abc import Sequence

import torch
from torch import nn

Size = int | tuple[int, int, int]

KERNEL = 5
"""Side of the depthwise kernel, on a grid of 6^3 cells."""

DILATIONS = (1, 2, 3)


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


class ConvNext(nn.Module):
    """Large depthwise kernel, layer norm, inverted bottleneck, all of it added to the input.

    Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545, figure 4; here in 3D with a
    factored kernel: the backward pass of a whole one takes a CPU more than twice as long.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = KERNEL // 2
        self.depthwise = nn.Sequential(
            nn.Conv3d(
                channels, channels, (1, KERNEL, KERNEL), padding=(0, reach, reach), groups=channels
            ),
            nn.Conv3d(channels, channels, (KERNEL, 1, 1), padding=(reach, 0, 0), groups=channels),
        )
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, c, z, y, x)`` to the same shape."""
        cells = self.norm(self.depthwise(x).permute(0, 2, 3, 4, 1))  # (n, z, y, x, c)
        mixed = self.narrow(nn.functional.gelu(self.widen(cells)))
        out: torch.Tensor = x + mixed.permute(0, 4, 1, 2, 3)
        return out


class Scales(nn.Module):
    """Appends the features of three dilated convolutions, ``growth`` channels each, to the input.

    Dense connections are those of Huang et al., arXiv:1608.06993; parallel dilations are the
    atrous pyramid of Chen et al., arXiv:1706.05587.
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.squeeze = conv_norm(inputs, growth, 1)
        self.dilated = nn.ModuleList(
            nn.Conv3d(growth, growth, 3, padding=d, dilation=d, bias=False) for d in DILATIONS
        )
        self.norm = nn.BatchNorm3d(growth * len(DILATIONS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, c, z, y, x)`` to ``(n, c + 3 growth, z, y, x)``."""
        narrow = self.squeeze(x)
        seen = torch.cat([conv(narrow) for conv in self.dilated], 1)
        return torch.cat([x, torch.relu(self.norm(seen))], 1)


class Multiscale(nn.Module):
    """Dense layers of `Scales`, then back to ``channels``."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        growth = channels // 2
        step = growth * len(DILATIONS)
        self.layers = nn.Sequential(*(Scales(channels + i * step, growth) for i in range(layers)))
        self.narrow = conv_norm(channels + layers * step, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, c, z, y, x)`` to the same shape."""
        out: torch.Tensor = self.narrow(self.layers(x))
        return out
