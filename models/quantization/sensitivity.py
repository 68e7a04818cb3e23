"""How much each layer minds being rounded: the report that mixed precision is chosen by.

What rounding costs, for people: tables, a plot, or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from models.charts import legend_above, log_x, new_figure, save_png
from models.networks.hybrid import Answers
from models.quantization.matching import match_loss
from models.quantization.simulation import Simulation, parameter_name


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

    The difference is the matching loss of `models.quantization.matching` (heat or logit first of
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


SERIES = (("exact", "left exact", "o"), ("int8", "INT8", "."), ("int4", "INT4", "s"))


def show_layers(rows: Sequence[dict[str, Any]], plot: Path | None, as_json: bool) -> None:
    """Prints the rows of `models.quantization.sensitivity.Layer`, and draws them."""
    if plot is not None:
        _draw(rows, plot)
    if as_json:
        print(json.dumps({"layers": list(rows)}, indent=1))
        return
    table = Table(title="difference from the float network, one layer changed at a time")
    for title in ("layer", "parameters", "exact", "INT8", "INT4"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in rows:
        figures = (f"{row[key]:.4f}" for key, *_ in SERIES)
        table.add_row(row["layer"], f"{row['parameters']:,}", *figures)
    Console().print(table)


def show_ranges(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Prints how far each way to find the ranges leaves INT8 from float."""
    if as_json:
        print(json.dumps({"ranges": list(rows)}, indent=1))
        return
    table = Table(title="difference from the float network on validation")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "ranges" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.4f}" for v in row.values()))
    Console().print(table)


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    figure = new_figure(9, 0.26 * len(rows) + 1.6)
    axes = figure.subplots()
    places = range(len(rows))
    for key, label, mark in SERIES:
        axes.plot([row[key] for row in rows], places, mark, label=label, alpha=0.8)
    names = [f"{row['layer']}  {row['parameters']:,}" for row in rows]
    axes.set_yticks(places, names, fontsize="small")
    axes.invert_yaxis()
    log_x(axes)
    axes.set(xlabel="difference from the float network's answers", ylabel="layer and parameters")
    axes.grid(axis="x", alpha=0.3)
    legend_above(axes, len(SERIES))
    figure.suptitle("One layer changed at a time")
    save_png(figure, path)
