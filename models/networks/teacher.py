"""Teachers of other kinds than the hybrid: the same frame around a trunk of the kind.

    known:   1 x 48^3 -> 16 x 24^3 -> 32 x 12^3 ------------> 64 x 6^3
                                          |                       |
    texture: 1 x 48^3 -> 16 x 24^3 -> 64 x 12^3 -> trunk ---> 128 x 6^3 -> trunk -> answers
                                                     |                       |
    mask:    1 x 48^3 <----------------------------- + <---------------------+

Both stems are the hybrid's (`models.networks.hybrid`): the known one is the screening network's
and frozen, because a new one learns too slowly on two cores. So the teachers share their first
layers, and their errors are less independent than those of unrelated networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import torch
from torch import nn

from models.networks.blocks import (
    ConvNext,
    Multiscale,
    Residual,
    conv_norm,
    patchify,
    residuals,
    upsample,
)
from models.networks.hybrid import Answers, KnownStem, known_spec
from models.networks.screening import ScreeningSpec, parts
from models.runtime.second_reader import TEXTURES


class Kind(StrEnum):
    """The blocks of the trunk."""

    RESIDUAL = "residual"
    CONVNEXT = "convnext"
    MULTISCALE = "multiscale"


DEPTHS = {Kind.RESIDUAL: (1, 2), Kind.CONVNEXT: (2, 6), Kind.MULTISCALE: (2, 3)}
"""Blocks at 1/4 and 1/8 with which a training step costs about as much as the hybrid's."""

MARKS = {Kind.RESIDUAL: "first", Kind.CONVNEXT: "depthwise", Kind.MULTISCALE: "layers"}
"""A part that only the blocks of this kind have."""


@dataclass(frozen=True)
class TeacherSpec:
    """Kind; the known stem; widths at 1/2, 1/4 and 1/8; blocks of the kind at 1/4 and 1/8."""

    kind: Kind
    known: ScreeningSpec = field(default_factory=ScreeningSpec)
    widths: tuple[int, int, int] = (16, 64, 128)
    depths: tuple[int, int] = (1, 2)

    @classmethod
    def usual(cls, kind: Kind, known: ScreeningSpec) -> "TeacherSpec":
        """Return the spec of a teacher that costs about as much to train as the hybrid."""
        return cls(kind, known, depths=DEPTHS[kind])

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> Self:
        """Return the spec of a teacher with these weights.

        Raises:
            KeyError: they are not a teacher's.
        """
        fine = ("fine2.0.0.weight", "fine4.0.weight", "fine8.0.weight")
        width2, width4, width8 = (weights[name].shape[0] for name in fine)
        kind = _kind(weights)
        path = ("trunk{}.0.layers." if kind is Kind.MULTISCALE else "trunk{}.").format
        at4, at8 = (parts(weights, path(grid)) for grid in (4, 8))
        return cls(kind, known_spec(weights), (width2, width4, width8), (at4, at8))


class TeacherNetwork(KnownStem):
    """A region ``(n, 1, 48, 48, 48)`` in [0, 1] to `Answers`, from its middle and its mean."""

    def __init__(self, spec: TeacherSpec) -> None:
        super().__init__(spec.known)
        self.spec = spec
        _, quarter, eighth, _ = spec.known.widths
        width2, width4, width8 = spec.widths
        self.fine2 = nn.Sequential(patchify(1, width2), *residuals(width2, [width2] * 2))
        self.fine4 = patchify(width2, width4)
        self.join4 = conv_norm(quarter, width4, 1)
        self.trunk4 = _trunk(spec.kind, width4, spec.depths[0])
        self.fine8 = patchify(width4, width8)
        self.join8 = conv_norm(eighth, width8, 1)
        self.trunk8 = _trunk(spec.kind, width8, spec.depths[1])
        self.norm = nn.LayerNorm(2 * width8)
        self.answer = nn.Linear(2 * width8, 3 + len(TEXTURES))
        self.up4 = nn.Conv3d(width8, width4, 1)
        self.mask = nn.ConvTranspose3d(width4, 1, 4, 4)
        nn.init.constant_(self.mask.get_parameter("bias"), -3.0)

    def forward(self, x: torch.Tensor) -> Answers:
        """See the class."""
        known4, known8 = self.known(x)  # (n, 32, 12, 12, 12), (n, 64, 6, 6, 6)
        fine4 = self.trunk4(self.fine4(self.fine2(x)) + self.join4(known4))
        fine8 = self.trunk8(self.fine8(fine4) + self.join8(known8))  # (n, c, 6, 6, 6)
        features = torch.cat([_middle(fine8), fine8.mean((2, 3, 4))], 1)
        answer = self.answer(self.norm(features))  # (n, 6)
        back4 = torch.relu(fine4 + upsample(self.up4(fine8)))
        return Answers(
            answer[:, :1], answer[:, 1:2] + 2.0, answer[:, 2:3], answer[:, 3:], self.mask(back4)
        )


def _trunk(kind: Kind, channels: int, depth: int) -> nn.Module:
    if kind is Kind.MULTISCALE:
        return nn.Sequential(Multiscale(channels, depth))
    block = Residual if kind is Kind.RESIDUAL else ConvNext
    return nn.Sequential(*(block(channels) for _ in range(depth)))


def _middle(x: torch.Tensor) -> torch.Tensor:
    """Average the eight cells around the middle: ``(n, c, z, y, x)`` to ``(n, c)``."""
    z, y, x_ = (slice(n // 2 - 1, n // 2 + 1) for n in x.shape[2:])
    return x[:, :, z, y, x_].mean((2, 3, 4))


def _kind(weights: Mapping[str, torch.Tensor]) -> Kind:
    marks = {name.split(".")[2] for name in weights if name.startswith("trunk4.0.")}
    for kind, mark in MARKS.items():
        if mark in marks:
            return kind
    raise KeyError("trunk4.0")
