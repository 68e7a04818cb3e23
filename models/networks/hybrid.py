"""The hybrid network: a CNN stem for local texture, a Transformer encoder for the whole region.

    known:   1 x 48^3 -> 16 x 24^3 -> 32 x 12^3 --> 64 x 6^3
                                          |             |
    texture: 1 x 48^3 -> 16 x 24^3 -> 64 x 12^3 ---> 216 tokens + 1 -> encoder -> answers
                             |            |                               |
    mask:    1 x 48^3 <- 16 x 24^3 <- 64 x 12^3 <-------------------------+

The known stem is the screening network's down to 1/8, with its weights, and is not trained: it
knows lung already. The texture stem is the hybrid's own. The region becomes 216 tokens of 8 mm; the
encoder relates them, and a class token carries the answers, as in ViT (Dosovitskiy et al.,
arXiv:2010.11929). The decoder of the mask is that of U-Net (Ronneberger et al., arXiv:1505.04597).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import nn

from models.networks.blocks import Residual, conv_norm, patchify, residuals, upsample
from models.networks.screening import ScreeningSpec, inner_widths, make_stem, parts
from models.runtime.second_reader import TEXTURES

KNOWN = ("stem", "down4", "down8")
"""The parts taken from a screening network."""


class KnownStem(nn.Module):
    """The base of a network whose first layers are a screening network's; see `start_from`."""

    def __init__(self, known: ScreeningSpec) -> None:
        super().__init__()
        self.stem, self.down4, self.down8 = make_stem(known)

    def known(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the screening network's features of ``(n, 1, z, y, x)`` at 1/4 and at 1/8."""
        quarter = self.down4(self.stem(x))
        return quarter, self.down8(quarter)

    def start_from(self, screening: Mapping[str, torch.Tensor]) -> None:
        """Take over the stem of a trained screening network and freeze it."""
        taken = {n: v for n, v in screening.items() if n.split(".")[0] in KNOWN}
        self.load_state_dict(self.state_dict() | taken)
        for name in KNOWN:
            getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen stem keeps the statistics of its batch norms."""
        super().train(mode)
        for name in KNOWN:
            part = getattr(self, name)
            part.train(mode and any(weight.requires_grad for weight in part.parameters()))
        return self


def known_spec(weights: Mapping[str, torch.Tensor]) -> ScreeningSpec:
    """Return the spec of the stem among these weights, with defaults below it.

    Raises:
        KeyError: there is no such stem.
    """
    first = ("stem.0.weight", "down4.0.0.weight", "down8.0.0.weight")
    half, quarter, eighth = (weights[name].shape[0] for name in first)
    blocks = (parts(weights, "down4.") - 1, parts(weights, "down8.") - 1, 0)
    spec = ScreeningSpec((half, quarter, eighth, 2 * eighth), blocks)
    inner = tuple(inner_widths(weights, part) for part in KNOWN[1:])
    whole = (spec.inner_of(0), spec.inner_of(1))
    return spec if inner == whole else replace(spec, inner=(*inner, (), ()))


@dataclass(frozen=True)
class HybridSpec:
    """Side of a region in voxels; the known stem; the texture stem's widths and blocks; encoder."""

    side: int = 48
    known: ScreeningSpec = field(default_factory=ScreeningSpec)
    widths: tuple[int, int] = (16, 64)
    blocks: tuple[int, int] = (2, 3)
    channels: int = 160
    depth: int = 4
    heads: int = 5

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], side: int = 48) -> Self:
        """Return the spec of a network with these weights.

        Raises:
            KeyError: they are not a hybrid network's.
        """
        channels = weights["place"].shape[2]
        return cls(
            side=side,
            known=known_spec(weights),
            widths=(weights["fine2.0.0.weight"].shape[0], weights["fine4.0.weight"].shape[0]),
            blocks=(parts(weights, "fine2.") - 1, parts(weights, "mix4.")),
            channels=channels,
            depth=parts(weights, "encoder."),
            heads=channels // 32,  # of 32 channels each
        )


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


class HybridNetwork(KnownStem):
    """A region ``(n, 1, 48, 48, 48)`` in [0, 1] to `Answers`."""

    def __init__(self, spec: HybridSpec | None = None) -> None:
        spec = spec or HybridSpec()
        super().__init__(spec.known)
        self.spec = spec
        _, quarter, eighth, _ = spec.known.widths
        half_width, quarter_width = spec.widths
        tokens = (spec.side // 8) ** 3
        self.fine2 = nn.Sequential(
            patchify(1, half_width), *residuals(half_width, [half_width] * spec.blocks[0])
        )
        self.fine4 = patchify(half_width, quarter_width)
        self.join4 = conv_norm(quarter, quarter_width, 1)
        self.mix4 = nn.Sequential(*residuals(quarter_width, [quarter_width] * spec.blocks[1]))
        self.fine8 = nn.Conv3d(quarter_width, spec.channels, 2, 2)
        self.embed = nn.Linear(eighth, spec.channels)
        # positions and class token; both names are in the shipped artifacts
        self.place = nn.Parameter(torch.randn(1, tokens + 1, spec.channels) * 0.02)
        self.asked = nn.Parameter(torch.randn(1, 1, spec.channels) * 0.02)
        layers = [EncoderLayer(spec.channels, spec.heads) for _ in range(spec.depth)]
        self.encoder = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(spec.channels)
        self.answer = nn.Linear(spec.channels, 3 + len(TEXTURES))
        self.up4 = nn.Conv3d(spec.channels, quarter_width, 1)
        self.back4 = Residual(quarter_width, factored=True)
        self.up2 = nn.Conv3d(quarter_width, half_width, 1)
        self.back2 = Residual(half_width, factored=True)
        self.mask = nn.ConvTranspose3d(half_width, 1, 2, 2)
        nn.init.constant_(self.mask.get_parameter("bias"), -3.0)

    def forward(self, x: torch.Tensor) -> Answers:
        """See the class."""
        known4, known8 = self.known(x)  # (n, 32, 12, 12, 12), (n, 64, 6, 6, 6)
        fine2 = self.fine2(x)
        fine4 = self.mix4(self.fine4(fine2) + self.join4(known4))
        fine8 = self.fine8(fine4)  # (n, c, 6, 6, 6)
        tokens = fine8.flatten(2).transpose(1, 2) + self.embed(known8.flatten(2).transpose(1, 2))
        class_token = self.asked.expand(tokens.shape[0], -1, -1)
        tokens = self.norm(self.encoder(torch.cat([class_token, tokens], 1) + self.place))
        answer = self.answer(tokens[:, 0])  # (n, 6)
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, known8.shape[2:])
        back4 = self.back4(torch.relu(fine4 + upsample(self.up4(grid))))
        back2 = self.back2(torch.relu(fine2 + upsample(self.up2(back4))))
        return Answers(
            answer[:, :1], answer[:, 1:2] + 2.0, answer[:, 2:3], answer[:, 3:], self.mask(back2)
        )


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
        """Map ``(n, tokens, channels)`` to the same shape."""
        x = x + self._attend(self.norm_mix(x))
        out: torch.Tensor = x + self.feed(self.norm_feed(x))
        return out

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, channels = x.shape
        parts = self.query_key_value(x).reshape(n, tokens, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, c / heads)
        share = torch.softmax(query @ key.transpose(2, 3) * query.shape[3] ** -0.5, 3)
        mixed = share @ value  # for these sizes faster than the fused operator
        out: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(n, tokens, channels))
        return out
