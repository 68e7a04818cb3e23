"""How much each layer minds being rounded: the report that mixed precision is chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.compression.simulation import Simulation, parameter_name
from models.networks.hybrid import Answers
from models.training.matching import match_loss


@dataclass(frozen=True)
class Layer:
    """One rounded weight.

    Attributes:
        name: of the weight in the graph; ``layer``: where in the network.
        parameters: how many numbers it holds.
        exact: what the simulation's answers differ from the float network's with this weight
            left exact and all else rounded as it is; ``int8``, ``int4``: with it rounded so.
    """

    name: str
    layer: str
    parameters: int
    exact: float
    int8: float
    int4: float

    @property
    def cost(self) -> float:
        """What four bits more save: the difference that INT4 makes, for each parameter."""
        return (self.int4 - self.int8) / self.parameters


def sensitivity(
    simulation: Simulation, network: nn.Module, batches: Sequence[torch.Tensor]
) -> list[Layer]:
    """Every weight's report, in the order of the graph; ``batches`` ``(n, 1, z, y, x)`` in [0, 1].

    The difference is the matching loss of `models.training.matching` (heat or logit first of
    all), its mean over the batches. The simulation is left as it was.
    """
    with torch.no_grad():
        wanted = [network(batch) for batch in batches]
        usual = _difference(simulation, batches, wanted)
        return [_layer(simulation, name, batches, wanted, usual) for name in simulation.weights()]


def distance(
    simulation: Simulation, network: nn.Module, batches: Sequence[torch.Tensor]
) -> dict[str, float]:
    """The terms of the matching loss between the two, each its mean over the batches."""
    with torch.no_grad():
        terms = [match_loss(simulation(batch), network(batch)) for batch in batches]
    return {name: sum(float(t[name]) for t in terms) / len(terms) for name in terms[0]}


def _layer(
    simulation: Simulation,
    name: str,
    batches: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor | Answers],
    usual: float,
) -> Layer:
    key = parameter_name(name)
    rounding = simulation.rounding[key]
    simulation.lower(name, 4)
    lowered = _difference(simulation, batches, wanted)
    simulation.lower(name, 16)
    exact = _difference(simulation, batches, wanted)
    simulation.rounding[key] = rounding
    count = simulation.exact[key].numel()
    return Layer(name, simulation.layer_of(name), count, exact, usual, lowered)


def _difference(
    simulation: Simulation,
    batches: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor | Answers],
) -> float:
    terms = [
        sum(float(term) for term in match_loss(simulation(batch), aim).values())
        for batch, aim in zip(batches, wanted, strict=True)
    ]
    return sum(terms) / len(terms)


def cheapest(layers: Sequence[Layer], size: int, wanted: int) -> list[str]:
    """The weights to lower to INT4, least harm for each byte first, until the file is small enough.

    ``size`` is the INT8 file's, ``wanted`` the size to come to, in bytes. All of them, if even
    that is not enough.
    """
    chosen: list[str] = []
    for layer in sorted(layers, key=lambda one: one.cost):
        if size <= wanted:
            break
        chosen.append(layer.name)
        size -= layer.parameters * (8 - 4) // 8
    return chosen
