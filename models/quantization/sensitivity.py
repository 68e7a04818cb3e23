"""Difference of a quantised network from the float one, with each layer rounded otherwise.

Mixed precision is chosen by it. The difference is the matching loss, which quantisation-aware
training minimises too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.export.onnx import export_float
from models.networks.hybrid import Answers
from models.quantization.ptq import calibration
from models.quantization.simulation import Simulation, exact_weights
from models.runtime.artifacts import find
from models.runtime.errors import UnfitArtifact
from models.training.runs import load_weights


@dataclass(frozen=True)
class Layer:
    """One rounded weight.

    Attributes:
        name: of the weight in the graph; ``layer``: its module in the network.
        parameters: the number of its elements.
        exact: difference of the simulation's outputs from the float network's with this weight
            left exact and all others rounded; ``int8``, ``int4``: with it rounded so.
    """

    name: str
    layer: str
    parameters: int
    exact: float
    int8: float
    int4: float


def trained_simulation(network: nn.Module, kind: str, qat: Path | None) -> Simulation:
    """Return the simulation of the registered INT8 file, with the weights of the run ``qat``.

    Without the run it has the weights that the file holds, which are rounded.

    Raises:
        UnfitArtifact: the run or the file was not made from ``network``.
    """
    simulation = Simulation(onnx.load_model_from_string(find(f"{kind}-int8").content())).eval()
    if qat is not None:
        try:
            simulation.load_state_dict(load_weights(qat))
        except RuntimeError as error:
            raise UnfitArtifact(f"{qat}: not of the run that made {kind}-int8: {error}") from error
    # its weights are the network's up to rounding and the training that followed, which change
    # them by less than half of their norm; small ones of a deep layer may change more
    exact, moved, whole = exact_weights(export_float(network, kind)), 0.0, 0.0
    for name in simulation.weights():
        mine, other = simulation.exact[name].detach().numpy(), exact.get(name, np.zeros(0))
        if mine.shape != other.shape:
            raise UnfitArtifact(f"{kind}-int8 is not of the network that --start gives: {name}")
        moved, whole = moved + np.square(mine - other).sum(), whole + np.square(other).sum()
    if moved > 0.25 * whole:
        raise UnfitArtifact(f"{kind}-int8 is not of the network that --start gives")
    return simulation


def sensitivity_batches(data: Path, kind: str, split: str = "train") -> list[Tensor]:
    """Return every nth of the calibration batches, in [0, 1], so that at least 24 remain."""
    batches = list(calibration(kind, data, split))
    step = max(1, len(batches) // 24)
    return [torch.from_numpy(batch).float() / 255 for batch in batches[::step]]


def sensitivity(
    simulation: Simulation, network: nn.Module, batches: Sequence[Tensor]
) -> list[Layer]:
    """Return every weight's report, in the order of the graph; the simulation is left unchanged.

    ``batches`` are ``(n, 1, z, y, x)`` in [0, 1]; differences are means over them.
    """
    with torch.no_grad():
        wanted = [network(batch) for batch in batches]

    def difference() -> float:
        return sum(distance(simulation, batches, wanted).values())

    layers, usual = [], difference()
    for name in simulation.weights():
        # change the rounding of this weight alone, measure, put it back
        rounding, apart = simulation.rounding[name], []
        for bits in (16, 4):
            simulation.lower(name, bits)
            apart.append(difference())
        simulation.rounding[name] = rounding
        count = simulation.exact[name].numel()
        layers.append(Layer(name, simulation.layer_of(name), count, apart[0], usual, apart[1]))
    return layers


@torch.no_grad()
def distance(
    simulation: Simulation, batches: Sequence[Tensor], wanted: Sequence[Any]
) -> dict[str, float]:
    """Return the mean over the batches of each term of the matching loss to the ``wanted``."""
    pairs = zip(batches, wanted, strict=True)
    terms = [match_loss(simulation(batch), aim) for batch, aim in pairs]
    return {name: sum(float(t[name]) for t in terms) / len(terms) for name in terms[0]}


def match_loss(found: Any, wanted: Any) -> dict[str, Tensor]:
    """Return the terms of the difference, for screening maps or for a hybrid's `Answers`."""
    if isinstance(wanted, Answers):
        # numbers as they are, the mask as probabilities
        *numbers, (_, mask, drawn) = zip(Answers._fields, found, wanted, strict=True)
        terms = {n: F.smooth_l1_loss(a.float(), b.float(), beta=0.2) for n, a, b in numbers}
        aim = torch.sigmoid(drawn.float())
        return {**terms, "mask": F.binary_cross_entropy_with_logits(mask.float(), aim)}
    # heat weighs where it could pass a threshold, offsets and diameter where there is heat
    maps, wanted = found.float(), wanted.float()
    heat, aim = maps[:, 0], wanted[:, 0]
    # a heat logit of -3 weighs one half; candidates with much lower ones are dismissed
    possible, likely = torch.sigmoid(aim + 3.0), torch.sigmoid(aim)
    box = F.smooth_l1_loss(maps[:, 1:], wanted[:, 1:], reduction="none", beta=0.1).sum(1)
    apart = F.smooth_l1_loss(heat, aim, reduction="none", beta=0.2)
    return {
        "heat": (apart * possible).sum() / possible.sum().clamp(min=1e-3),
        "place": (box * likely).sum() / likely.sum().clamp(min=1e-3),
    }


def select_layers(layers: Sequence[Layer], size: int, max_bytes: int) -> list[str]:
    """Return the weights to lower to INT4 so that a file of ``size`` bytes has ``max_bytes``.

    Those come first whose difference increases least from INT8 to INT4, for each parameter. All of
    them, if even that is not enough.
    """
    chosen: list[str] = []
    # most bytes for the least harm; two INT4 levels share a byte
    for layer in sorted(layers, key=lambda one: (one.int4 - one.int8) / one.parameters):
        if size <= max_bytes:
            break
        chosen.append(layer.name)
        size -= layer.parameters * (8 - 4) // 8
    return chosen
