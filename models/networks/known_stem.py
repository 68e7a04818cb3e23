"""The stem that networks for regions take over from the screening network, weights and all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import nn

from models.networks.screening import ScreeningSpec, inner_widths, make_stem

KNOWN = ("stem", "down4", "down8")
"""The parts that are a screening network's."""


class KnownStem(nn.Module):
    """The base of a network whose first layers are a screening network's; see `start_from`."""

    def __init__(self, known: ScreeningSpec) -> None:
        super().__init__()
        self.stem, self.down4, self.down8 = make_stem(known)

    def known(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A region ``(n, 1, z, y, x)`` at 1/4 and at 1/8, as the screening network sees it."""
        quarter = self.down4(self.stem(x))
        return quarter, self.down8(quarter)

    def start_from(self, screening: Mapping[str, torch.Tensor]) -> None:
        """Takes over the stem of a trained screening network, which then stays as it is."""
        taken = {n: v for n, v in screening.items() if n.split(".")[0] in KNOWN}
        self.load_state_dict(self.state_dict() | taken)
        for name in KNOWN:
            getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module's; a stem that was taken over keeps its batch norm's statistics too."""
        super().train(mode)
        for name in KNOWN:
            part = getattr(self, name)
            part.train(mode and any(weight.requires_grad for weight in part.parameters()))
        return self


def known_spec(weights: Mapping[str, torch.Tensor]) -> ScreeningSpec:
    """The spec of the stem among these weights; of what is below it the usual.

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


def parts(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many members the sequence below that prefix, such as ``down4.``, has."""
    depth = prefix.count(".")
    return len({name.split(".")[depth] for name in weights if name.startswith(prefix)})
