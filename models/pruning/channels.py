"""Whole channels of the screening network out: a really smaller network, the same to every user.

Channels that are added to each other go together. A group is either a stage (its stem, the
outputs of its blocks, what is added on the way back) or the inside of one residual block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.networks.screening import DOWN, ScreeningNetwork, ScreeningSpec
from models.runtime.errors import ModelError

STAGES = ("half", "quarter", "eighth", "sixteenth")

STEP = 16
"""Channels go in steps of this: INT8 kernels work in blocks of 16."""

_WAYS = {
    "stem": ("half", None),
    "lateral8": ("eighth", "sixteenth"),
    "lateral4": ("quarter", "eighth"),
    "head": (None, "quarter"),
    "share": (None, "quarter"),
    **{part: (STAGES[i + 1], STAGES[i]) for i, part in enumerate(DOWN)},
    "smooth": ("quarter", None),
}
_SIDE = {"stem": 2, "down4": 4, "down8": 8, "down16": 16, "lateral8": 16, "lateral4": 8}
"""Voxels of the box for one cell of the grid that a part computes on, an axis; else 4."""


class CannotPrune(ModelError):
    """No channels are left to take; the message says how far it can go."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds for each voxel of the box."""

    parameters: float
    multiply_adds: float


def axes(name: str) -> tuple[str | None, str | None]:
    """The groups that a weight of that name writes to and reads from; None where it has none."""
    part, *rest = name.split(".")
    writes, reads = _WAYS[part]
    block = f"{part}.{rest[0]}" if part in DOWN else part
    if "first" in rest:
        return block, writes
    return (writes, block) if "second" in rest else (writes, reads)


def widths(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many channels each group has."""
    return {
        group: value.shape[0]
        for name, value in weights.items()
        if value.ndim and (group := axes(name)[0]) is not None
    }


def cut(network: ScreeningNetwork, keep: Mapping[str, torch.Tensor]) -> ScreeningNetwork:
    """The network with only those channels, ``keep`` by group: indices in rising order."""
    kept = {}
    for name, value in network.state_dict().items():
        out, into = axes(name)
        if value.ndim and out is not None and out in keep:
            value = value[keep[out]]
        if value.ndim > 1 and into is not None and into in keep:
            value = value[:, keep[into]]
        kept[name] = value.clone()
    smaller = ScreeningNetwork(ScreeningSpec.of(kept)).to(next(network.parameters()).dtype)
    smaller.load_state_dict(kept)
    return smaller.train(network.training)


def cost(weights: Mapping[str, torch.Tensor], width: Mapping[str, int]) -> Cost:
    """What a network of these weights' shapes costs with so many channels in each group."""
    parameters, work = 0.0, 0.0
    for name, value in weights.items():
        if name.endswith(("running_mean", "running_var")) or not value.ndim:
            continue
        out, into = axes(name)
        count = value.numel() / value.shape[0] * width.get(out or "", value.shape[0])
        if value.ndim > 1:
            count *= width.get(into or "", value.shape[1]) / value.shape[1]
            work += count / _SIDE.get(name.split(".")[0], 4) ** 3
        parameters += count
    return Cost(parameters, work)


def choose(
    weights: Mapping[str, torch.Tensor],
    scores: Mapping[str, torch.Tensor],
    share: float,
    step: int = STEP,
) -> dict[str, torch.Tensor]:
    """The channels to keep of each group so that ``share`` of the parameters goes.

    ``step`` channels go at a time: those that matter least for what they cost, as their share of
    the parameters plus their share of the multiply-adds. ``step`` of each group stay.

    Raises:
        CannotPrune: that share cannot go.
    """
    order = {group: score.argsort(descending=True) for group, score in scores.items()}
    width = widths(weights)
    whole = now = cost(weights, width)
    while now.parameters > (1 - share) * whole.parameters:
        best, least = "", float("inf")
        for group in order:
            if width[group] < 2 * step:
                continue
            then = cost(weights, width | {group: width[group] - step})
            gain = (now.parameters - then.parameters) / whole.parameters
            gain += (now.multiply_adds - then.multiply_adds) / whole.multiply_adds
            last = order[group][width[group] - step : width[group]]
            if (worth := float(scores[group][last].sum()) / gain) < least:
                best, least = group, worth
        if not best:
            gone = 1 - now.parameters / whole.parameters
            raise CannotPrune(
                f"{share:.0%} of the parameters cannot go in steps of {step} channels, at most "
                f"{gone:.0%}"
            )
        width[best] -= step
        now = cost(weights, width)
    return {group: rank[: width[group]].sort().values for group, rank in order.items()}
