"""The hybrid network: a CNN stem for local texture, a Transformer encoder for the whole region.

    1 x 48^3 -> stem -> 32 x 24^3 -> 64 x 12^3 -> tokens 6^3 + 1 -> encoder -> nodule?, diameter

The region is read as 216 tokens of 8 mm, each a summary that the stem made of its texture; the
encoder relates them (is the thing a bend of that vessel, a part of the pleura?) and a class
token carries the answer, as in ViT (Dosovitskiy et al., arXiv:2010.11929).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.networks.layers import Residual, conv_norm, patchify


@dataclass(frozen=True)
class HybridSpec:
    """Region side in voxels; stem widths at 1/2, 1/4 and 1/8; depth and heads of the encoder."""

    side: int = 48
    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (1, 2, 1)
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1


class HybridNetwork(nn.Module):
    """A region ``(n, 1, 48, 48, 48)`` in [0, 1] to nodule or not, and diameter.

    The outputs are the logit of being a nodule ``(n, 1)`` and ln of its diameter in mm ``(n, 1)``.
    In training a third output follows: ``(n, 1, 12, 12, 12)``, the logit of the share of each
    4 mm cell that is nodule.
    """

    def __init__(self, spec: HybridSpec | None = None) -> None:
        super().__init__()
        spec = spec or HybridSpec()
        half, quarter, eighth = spec.widths
        tokens = (spec.side // 8) ** 3
        fine = [Residual(half, factored=True) for _ in range(spec.blocks[0])]
        self.stem = nn.Sequential(conv_norm(1, half, 3, 2), *fine)
        self.down4 = nn.Sequential(patchify(half, quarter), *_blocks(quarter, spec.blocks[1]))
        self.down8 = nn.Sequential(patchify(quarter, eighth), *_blocks(eighth, spec.blocks[2]))
        self.place = nn.Parameter(torch.randn(1, tokens + 1, eighth) * 0.02)
        self.asked = nn.Parameter(torch.randn(1, 1, eighth) * 0.02)
        self.encoder = nn.Sequential(
            *[EncoderLayer(eighth, spec.heads, spec.dropout) for _ in range(spec.depth)]
        )
        self.norm = nn.LayerNorm(eighth)
        self.heads = nn.Linear(eighth, 2)
        self.share = nn.Conv3d(quarter, 1, 1)
        nn.init.constant_(self.heads.bias, 0.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        quarter = self.down4(self.stem(x))
        grid = self.down8(quarter)  # (n, c, 6, 6, 6)
        tokens = grid.flatten(2).transpose(1, 2)  # (n, 216, c)
        asked = self.asked.expand(tokens.shape[0], -1, -1)
        tokens = self.encoder(torch.cat([asked, tokens], 1) + self.place)
        answer = self.heads(self.norm(tokens[:, 0]))  # (n, 2)
        outputs = (answer[:, :1], answer[:, 1:] + 2.0)
        return (*outputs, self.share(quarter)) if self.training else outputs


class EncoderLayer(nn.Module):
    """One pre-norm Transformer layer over ``(n, tokens, channels)``."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_mix = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.norm_feed = nn.LayerNorm(channels)
        self.feed = nn.Sequential(
            nn.Linear(channels, 3 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(3 * channels, channels),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, tokens, channels)`` to the same shape."""
        x = x + self.dropout(self._attend(self.norm_mix(x)))
        out: torch.Tensor = x + self.dropout(self.feed(self.norm_feed(x)))
        return out

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, channels = x.shape
        parts = self.query_key_value(x).reshape(n, tokens, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, c / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(n, tokens, channels))
        return out


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(count)]
