"""The hybrid network: a CNN stem for local texture, a Transformer encoder for the whole region.

    1 x 48^3 -> 16 x 24^3 -> 32 x 12^3 -> 64 x 6^3 -> 216 tokens + 1 -> encoder -> nodule?, diameter

The stem is the screening network's down to 1/8, weights and all: it knows lung already. The region
is then 216 tokens of 8 mm, each a summary of its texture; the encoder relates them (is the thing a
bend of that vessel, a part of the pleura?) and a class token carries the answer, as in ViT
(Dosovitskiy et al., arXiv:2010.11929).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.screening import ScreeningSpec, make_stem

STEM = ("stem", "down4", "down8")
"""The parts that both networks have."""


@dataclass(frozen=True)
class HybridSpec:
    """Side of a region in voxels; the stem; channels, depth and heads of the encoder."""

    side: int = 48
    stem: ScreeningSpec = field(default_factory=ScreeningSpec)
    channels: int = 160
    depth: int = 6
    heads: int = 5


class HybridNetwork(nn.Module):
    """A region ``(n, 1, 48, 48, 48)`` in [0, 1] to nodule or not, and diameter.

    The outputs are the logit of being a nodule ``(n, 1)`` and ln of its diameter in mm ``(n, 1)``.
    In training a third output follows: ``(n, 1, 12, 12, 12)``, the logit of the share of each
    4 mm cell that is nodule.
    """

    def __init__(self, spec: HybridSpec | None = None) -> None:
        super().__init__()
        spec = spec or HybridSpec()
        _, quarter, eighth, _ = spec.stem.widths
        tokens = (spec.side // 8) ** 3
        self.stem, self.down4, self.down8 = make_stem(spec.stem)
        self.embed = nn.Linear(eighth, spec.channels)
        self.place = nn.Parameter(torch.randn(1, tokens + 1, spec.channels) * 0.02)
        self.asked = nn.Parameter(torch.randn(1, 1, spec.channels) * 0.02)
        layers = [EncoderLayer(spec.channels, spec.heads) for _ in range(spec.depth)]
        self.encoder = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(spec.channels)
        self.answer = nn.Linear(spec.channels, 2)
        self.share = nn.Conv3d(quarter, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        quarter = self.down4(self.stem(x))
        grid = self.down8(quarter)  # (n, 64, 6, 6, 6)
        tokens = self.embed(grid.flatten(2).transpose(1, 2))  # (n, 216, c)
        asked = self.asked.expand(tokens.shape[0], -1, -1)
        tokens = self.encoder(torch.cat([asked, tokens], 1) + self.place)
        answer = self.answer(self.norm(tokens[:, 0]))  # (n, 2)
        outputs = (answer[:, :1], answer[:, 1:] + 2.0)
        return (*outputs, self.share(quarter)) if self.training else outputs

    def start_from(self, screening: Mapping[str, torch.Tensor]) -> None:
        """Takes over the stem of a trained screening network, which then stays as it is."""
        taken = {n: v for n, v in screening.items() if n.split(".")[0] in STEM}
        self.load_state_dict(self.state_dict() | taken)
        for name in STEM:
            getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module's; a stem that was taken over keeps its batch norm's statistics too."""
        super().train(mode)
        for name in STEM:
            part = getattr(self, name)
            part.train(mode and any(weight.requires_grad for weight in part.parameters()))
        return self


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, tokens, channels)`` to the same shape."""
        x = x + self._attend(self.norm_mix(x))
        out: torch.Tensor = x + self.feed(self.norm_feed(x))
        return out

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, channels = x.shape
        parts = self.query_key_value(x).reshape(n, tokens, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, c / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(n, tokens, channels))
        return out
