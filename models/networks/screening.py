"""The screening network: a fully convolutional 3D CNN over the whole lung box.

    1 -> [1/2] 16 -> [1/4] 32 ---------------------- + -> smooth -> head: heat, offset, diameter
                        +-> [1/8] 64 -------- + ---- ^
                                 +-> [1/16] 128 -^

Point-wise laterals and nearest-neighbour upsampling on the way back: both stay in INT8. The
widths are 16, 32, 64 and 128 because INT8 kernels work in blocks of 16 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.layers import Residual, patchify

STRIDE = 4
"""Voxels of the box per cell of the maps, along each axis."""

DOWN = ("down4", "down8", "down16")
"""The parts that halve the grid, each with its blocks behind."""

COARSEST = 16
"""The box is padded to multiples of this."""

MAPS = ("heat", "offset_z", "offset_y", "offset_x", "log_diameter")
"""What the five output channels are; heat is a logit, offsets are in voxels from the cell's
centre divided by `STRIDE`, the diameter is ln(mm)."""


@dataclass(frozen=True)
class ScreeningSpec:
    """Widths at 1/2, 1/4, 1/8 and 1/16, and residual blocks at 1/4, 1/8 and 1/16."""

    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    blocks: tuple[int, int, int] = (2, 3, 4)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> Self:
        """The spec that a network with these weights was made with.

        Raises:
            KeyError: they are no screening network's.
        """
        first = ("stem.0.weight", *(f"{part}.0.0.weight" for part in DOWN))
        half, quarter, eighth, sixteenth = (weights[name].shape[0] for name in first)
        counts = [{n.split(".")[1] for n in weights if n.startswith(f"{part}.")} for part in DOWN]
        at4, at8, at16 = (len(count) - 1 for count in counts)
        return cls((half, quarter, eighth, sixteenth), (at4, at8, at16))


class ScreeningNetwork(nn.Module):
    """``(n, 1, z, y, x)`` in [0, 1] to ``(n, 5, z/4, y/4, x/4)`` maps, named by `MAPS`.

    In training a sixth map follows: the logit of the share of the cell that is nodule.
    """

    def __init__(self, spec: ScreeningSpec | None = None) -> None:
        super().__init__()
        spec = spec or ScreeningSpec()
        _, quarter, eighth, sixteenth = spec.widths
        self.stem, self.down4, self.down8 = make_stem(spec)
        self.down16 = nn.Sequential(
            patchify(eighth, sixteenth), *_blocks(sixteenth, spec.blocks[2])
        )
        self.lateral8 = nn.Conv3d(sixteenth, eighth, 1)
        self.lateral4 = nn.Conv3d(eighth, quarter, 1)
        self.smooth = Residual(quarter, factored=True)
        self.head = nn.Conv3d(quarter, len(MAPS), 1)
        self.share = nn.Conv3d(quarter, 1, 1)
        nn.init.constant_(self.head.bias[:1], -5.0)  # type: ignore[index]  # a bias was asked for

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        quarter = self.down4(self.stem(x))
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        eighth = torch.relu(eighth + _double(self.lateral8(sixteenth)))
        quarter = torch.relu(quarter + _double(self.lateral4(eighth)))
        features = self.smooth(quarter)
        maps: torch.Tensor = self.head(features)
        return torch.cat([maps, self.share(features)], 1) if self.training else maps


def make_stem(spec: ScreeningSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The way down to 1/2, 1/4 and 1/8, which the hybrid network shares."""
    half, quarter, eighth, _ = spec.widths
    down4 = nn.Sequential(patchify(half, quarter), *_blocks(quarter, spec.blocks[0]))
    down8 = nn.Sequential(patchify(quarter, eighth), *_blocks(eighth, spec.blocks[1]))
    return patchify(1, half), down4, down8


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [Residual(channels, factored=True) for _ in range(count)]


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
