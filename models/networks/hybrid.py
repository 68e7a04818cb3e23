"""The hybrid network: members that each join a CNN and a Transformer encoder over a region.

    member:  1 x 48^3 -> 16 x 24^3 -> 64 x 12^3 -> 128 x 6^3 -> 216 tokens + 1 -> encoder -> answers
    mask:    1 x 48^3 <- 16 x 24^3 <- 64 x 12^3 <---------------- tokens

Each member sees the region at another scale: its middle 24, 32 or 48 mm, resampled to 48 voxels a
side. The CNN learns local texture; the encoder relates the tokens. A class token, which starts from
the features of the middle, carries the answers, as in ViT (Dosovitskiy et al., arXiv:2010.11929).
The decoder of the mask is that of U-Net (Ronneberger et al., arXiv:1505.04597). The network's
answers are the means over its members, in the logit each with the inverse of the volume that it
reads as its weight; outline and diameter are those of the widest.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import nn

from models.networks.screening import Residual, parts, patchify, residuals, upsample
from models.runtime.second_reader import TEXTURES

DECODER = ("up4", "back4", "up2", "back2", "mask")
"""The parts of the widest member that draw the mask."""


@dataclass(frozen=True)
class HybridSpec:
    """Side of a region in voxels; mm that each member reads; CNN's widths and blocks; encoder."""

    side: int = 48
    reads: tuple[int, ...] = (24, 32, 48)
    widths: tuple[int, int, int] = (16, 64, 128)
    blocks: tuple[int, int, int] = (2, 3, 3)
    channels: int = 192
    depth: int = 4

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], side: int = 48) -> Self:
        """Return the spec of a network with these weights.

        Raises:
            KeyError: they are not a hybrid network's.
        """
        reads = scales(weights)
        if not reads:
            raise KeyError("members")
        one = f"members.{reads[0]}"
        half, quarter, eighth = (weights[f"{one}.down{n}.0.0.weight"].shape[0] for n in (2, 4, 8))
        blocks = tuple(parts(weights, f"{one}.down{n}.") - 1 for n in (2, 4, 8))
        return cls(
            side, tuple(reads), (half, quarter, eighth), (blocks[0], blocks[1], blocks[2]),
            weights[f"{one}.place"].shape[2], parts(weights, f"{one}.encoder."),
        )  # fmt: skip


def scales(weights: Mapping[str, torch.Tensor]) -> list[int]:
    """Return the mm that the members with these weights read, in order; none of another network."""
    return sorted({int(name.split(".")[1]) for name in weights if name.startswith("members.")})


def without_spare_decoders(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of members, without the decoders of those that are not the widest.

    A member that was trained alone has one.
    """
    widest = str(max(scales(weights)))

    def spare(name: str) -> bool:
        _, member, part, *_ = name.split(".")
        return member != widest and part in DECODER

    return {name: value for name, value in weights.items() if not spare(name)}


class Answers(NamedTuple):
    """The hybrid's outputs for ``n`` regions.

    Attributes:
        logit: of being a nodule, ``(n, 1)``.
        log_diameter: ln of the diameter in mm, ``(n, 1)``.
        malignancy: logit of the malignancy score, ``(n, 1)``.
        texture: logits of `TEXTURES`, ``(n, 3)``.
        mask: logit of each voxel, ``(n, 1, side, side, side)``.
    """

    logit: torch.Tensor
    log_diameter: torch.Tensor
    malignancy: torch.Tensor
    texture: torch.Tensor
    mask: torch.Tensor


class HybridNetwork(nn.Module):
    """A region ``(n, 1, 48, 48, 48)`` in [0, 1] to `Answers`."""

    def __init__(self, spec: HybridSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or HybridSpec()
        widest = max(spec.reads)
        self.members = nn.ModuleDict(
            {str(mm): Member(spec, mm, outlines=mm == widest) for mm in sorted(spec.reads)}
        )

    def forward(self, x: torch.Tensor) -> Answers:
        """See the class."""
        each = self.each(x)
        widest = each[-1]
        # what lies around, the screening network knows: a narrow look adds most
        say = [member.reads**-3 for member in self.listed()]
        told = (part / sum(say) * one.logit for part, one in zip(say, each, strict=True))
        logit = torch.stack([*told]).sum(0)
        # its size and outline need all of it, which the widest member alone may see
        malignancy, texture = (
            torch.stack([getattr(one, name) for one in each]).mean(0)
            for name in ("malignancy", "texture")
        )
        return Answers(logit, widest.log_diameter, malignancy, texture, widest.mask)

    def each(self, x: torch.Tensor) -> list[Answers]:
        """Return the answers of each member, the widest last; its mask is that of the region."""
        return [member(x) for member in self.listed()]

    def listed(self) -> list["Member"]:
        """Return the members, the widest last."""
        return [member for member in self.members.values() if isinstance(member, Member)]


def shortened(network: HybridNetwork, blocks: Sequence[int], depth: int) -> HybridNetwork:
    """Return a copy with at most as many ``blocks`` and layers of the encoder.

    The first blocks stay, and layers at equal distances, the last one among them. Each adds to what
    the others compute, so the rest is a start from which to train. DistilBERT (Sanh et al.,
    arXiv:1910.01108) begins so, too.
    """
    at2, at4, at8 = map(min, network.spec.blocks, blocks)
    before, depth = network.spec.depth, min(network.spec.depth, depth)
    short = copy.deepcopy(network)
    short.spec = replace(network.spec, blocks=(at2, at4, at8), depth=depth)
    for member in short.listed():
        for name, count in (("down2", at2), ("down4", at4), ("down8", at8)):
            setattr(member, name, getattr(member, name)[: 1 + count])
        layers = (member.encoder[-(-n * before // depth) - 1] for n in range(1, 1 + depth))
        member.encoder = nn.Sequential(*layers)
    return short


class Member(nn.Module):
    """The network of one scale, in mm that it ``reads``; only one that ``outlines`` has a mask.

    The mask covers what the member reads; without one it is empty.
    """

    def __init__(self, spec: HybridSpec, reads: int, *, outlines: bool) -> None:
        super().__init__()
        self.side, self.reads, self.outlines = spec.side, reads, outlines
        half, quarter, eighth = spec.widths
        at2, at4, at8 = spec.blocks
        self.grid = spec.side // 8
        tokens = self.grid**3
        self.down2 = nn.Sequential(patchify(1, half), *residuals(half, [half] * at2))
        self.down4 = nn.Sequential(patchify(half, quarter), *residuals(quarter, [quarter] * at4))
        self.down8 = nn.Sequential(patchify(quarter, eighth), *residuals(eighth, [eighth] * at8))
        self.embed = nn.Linear(eighth, spec.channels)
        self.middle = nn.Linear(eighth, spec.channels)
        self.place = nn.Parameter(torch.randn(1, tokens + 1, spec.channels) * 0.02)
        layers = [EncoderLayer(spec.channels, spec.channels // 32) for _ in range(spec.depth)]
        self.encoder = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(spec.channels)
        self.answer = nn.Linear(spec.channels, 3 + len(TEXTURES))
        if not outlines:
            return
        self.up4 = nn.Conv3d(spec.channels, quarter, 1)
        self.back4 = Residual(quarter, quarter)
        self.up2 = nn.Conv3d(quarter, half, 1)
        self.back2 = Residual(half, half)
        self.mask = nn.ConvTranspose3d(half, 1, 2, 2)
        nn.init.constant_(self.mask.get_parameter("bias"), -3.0)

    def forward(self, x: torch.Tensor) -> Answers:
        """Map ``(n, 1, side, side, side)`` to `Answers`."""
        down2 = self.down2(self.view(x))
        down4 = self.down4(down2)
        down8 = self.down8(down4)  # (n, c, 6, 6, 6)
        two = slice(self.grid // 2 - 1, self.grid // 2 + 1)  # the cells in the middle of an axis
        centre = down8[:, :, two, two, two].mean((2, 3, 4))
        tokens = self.embed(down8.flatten(2).transpose(1, 2))
        tokens = torch.cat([self.middle(centre)[:, None], tokens], 1) + self.place
        *layers, last = self.encoder
        for layer in layers:
            tokens = layer(tokens)
        # the class token alone answers; the others are asked for by the mask
        tokens = self.norm(last(tokens, None if self.outlines else 1))
        answer = self.answer(tokens[:, 0])  # (n, 6)
        mask = x.new_zeros(0)
        if self.outlines:
            sides = (self.grid,) * 3  # constants: traced shapes would be nodes of the artifact
            grid = tokens[:, 1:].transpose(1, 2).reshape(-1, self.embed.out_features, *sides)
            back4 = self.back4(torch.relu(down4 + upsample(self.up4(grid))))
            back2 = self.back2(torch.relu(down2 + upsample(self.up2(back4))))
            mask = self.mask(back2)
        return Answers(answer[:, :1], answer[:, 1:2] + 2.0, answer[:, 2:3], answer[:, 3:], mask)

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """Return the middle of regions, or of their masks, that this member reads."""
        if self.reads == self.side:
            return x
        low = (self.side - self.reads) // 2
        inner = x[..., low : low + self.reads, low : low + self.reads, low : low + self.reads]
        size = (self.side,) * 3
        return nn.functional.interpolate(inner, size, mode="trilinear", align_corners=False)


class EncoderLayer(nn.Module):
    """One pre-norm Transformer layer over ``(n, tokens, channels)``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_mix = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.norm_feed = nn.LayerNorm(channels)
        self.feed = nn.Sequential(
            nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
        )

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """Map ``(n, tokens, channels)`` to the same shape, or to that of the ``first`` tokens."""
        x = x[:, :first] + self._attend(self.norm_mix(x), first)
        out: torch.Tensor = x + self.feed(self.norm_feed(x))
        return out

    def _attend(self, x: torch.Tensor, first: int | None) -> torch.Tensor:
        n, tokens, channels = x.shape
        parts = self.query_key_value(x).reshape(n, tokens, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, c / heads)
        query = query[:, :, :first]
        share = torch.softmax(query @ key.transpose(2, 3) * query.shape[3] ** -0.5, 3)
        mixed = share @ value  # for these sizes faster than the fused operator
        out: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(n, query.shape[2], channels))
        return out
