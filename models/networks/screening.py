"""The screening network: a fully convolutional 3D CNN over the whole lung box.

    1 -> [1/2] 16 -> [1/4] 32 ---------------------- + -> smooth -> head: heat, offset, diameter
                        +-> [1/8] 64 -------- + ---- ^
                                 +-> [1/16] 128 -^

Point-wise laterals and nearest-neighbour upsampling on the way back: both stay in INT8. The
widths are 16, 32, 64 and 128 because INT8 kernels work in blocks of 16 channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn


def conv_norm(inputs: int, outputs: int, z: int, yx: int, stride: int = 1) -> nn.Sequential:
    """Make convolution without bias, and batch norm; padding keeps the grid at stride 1."""
    deep, wide = (size // 2 if size % 2 else 0 for size in (z, yx))
    pad = (deep, wide, wide)
    convolution = nn.Conv3d(inputs, outputs, (z, yx, yx), stride, pad, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs))


def patchify(inputs: int, outputs: int) -> nn.Sequential:
    """Make a layer that turns each 2 x 2 x 2 patch into one voxel of ``outputs`` channels."""
    return conv_norm(inputs, outputs, 2, 2, 2).append(nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + f(x), f two convolutions, of 1x3x3 to ``inner`` channels, and of 3x1x1 back.

    The pair has 12/27 of the multiply-adds of one full 3 x 3 x 3 convolution and one non-linearity
    more.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, inner, 1, 3).append(nn.ReLU(inplace=True))
        self.second = conv_norm(inner, channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, c, z, y, x)`` to the same shape."""
        return torch.relu(x + self.second(self.first(x)))


def residuals(channels: int, inner: Sequence[int]) -> list[nn.Module]:
    """Return residual blocks with these channels inside each."""
    return [Residual(channels, width) for width in inner]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Double the grid by nearest neighbours."""
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


DOWN = ("down4", "down8", "down16")
"""The parts that halve the grid, each followed by its blocks."""

MAPS = ("heat", "offset_z", "offset_y", "offset_x", "log_diameter")
"""The five output channels: heat is a logit, offsets from the cell's centre are in cells, the
diameter is ln(mm)."""


@dataclass(frozen=True)
class ScreeningSpec:
    """Widths at 1/2, 1/4, 1/8 and 1/16, and residual blocks at 1/4, 1/8 and 1/16.

    ``inner`` are the channels inside each block of the parts of `DOWN` and of the last block, if
    pruning made them differ from those outside; else empty.
    """

    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    blocks: tuple[int, int, int] = (2, 3, 4)
    inner: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> Self:
        """Return the spec of a network with these weights.

        Raises:
            KeyError: they are not a screening network's.
        """
        first = ("stem.0.weight", *(f"{part}.0.0.weight" for part in DOWN))
        half, quarter, eighth, sixteenth = (weights[name].shape[0] for name in first)
        at4, at8, at16 = (parts(weights, f"{part}.") - 1 for part in DOWN)
        spec = cls((half, quarter, eighth, sixteenth), (at4, at8, at16))
        inner = tuple(inner_widths(weights, part) for part in (*DOWN, "smooth"))
        whole = tuple(spec.inner_of(part) for part in range(len(DOWN) + 1))
        return spec if inner == whole else replace(spec, inner=inner)

    def inner_of(self, part: int) -> tuple[int, ...]:
        """Return the channels inside each block of that part of `DOWN`; of the last block for 3."""
        count = (*self.blocks, 1)[part]
        known = self.inner[part][:count] if self.inner else ()
        return (*known, *[(*self.widths[1:], self.widths[1])[part]] * (count - len(known)))


def parts(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Count the members of the sequence below a prefix such as ``down4.``."""
    depth = prefix.count(".")
    return len({name.split(".")[depth] for name in weights if name.startswith(prefix)})


def inner_widths(weights: Mapping[str, torch.Tensor], part: str) -> tuple[int, ...]:
    """Return the channels inside each residual block of a part, in order."""
    inside = [n for n in weights if n.startswith(f"{part}.") and n.endswith("first.0.weight")]
    order = sorted(inside, key=lambda name: [int(p) for p in name.split(".") if p.isdecimal()])
    return tuple(weights[name].shape[0] for name in order)


class ScreeningNetwork(nn.Module):
    """``(n, 1, z, y, x)`` in [0, 1] to ``(n, 5, z/4, y/4, x/4)`` maps, named by `MAPS`.

    In training a sixth map follows: the logit of the share of the cell that is nodule.
    """

    def __init__(self, spec: ScreeningSpec | None = None) -> None:
        super().__init__()
        spec = spec or ScreeningSpec()
        half, quarter, eighth, sixteenth = spec.widths
        self.stem = patchify(1, half)
        self.down4 = nn.Sequential(patchify(half, quarter), *residuals(quarter, spec.inner_of(0)))
        self.down8 = nn.Sequential(patchify(quarter, eighth), *residuals(eighth, spec.inner_of(1)))
        self.down16 = nn.Sequential(
            patchify(eighth, sixteenth), *residuals(sixteenth, spec.inner_of(2))
        )
        self.lateral8 = nn.Conv3d(sixteenth, eighth, 1)
        self.lateral4 = nn.Conv3d(eighth, quarter, 1)
        (self.smooth,) = residuals(quarter, spec.inner_of(3))
        self.head = nn.Conv3d(quarter, len(MAPS), 1)
        self.share = nn.Conv3d(quarter, 1, 1)
        nn.init.constant_(self.head.get_parameter("bias")[:1], -5.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        quarter = self.down4(self.stem(x))
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        eighth = torch.relu(eighth + upsample(self.lateral8(sixteenth)))
        quarter = torch.relu(quarter + upsample(self.lateral4(eighth)))
        features = self.smooth(quarter)
        maps: torch.Tensor = self.head(features)
        return torch.cat([maps, self.share(features)], 1) if self.training else maps
