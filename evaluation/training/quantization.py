"""Quantised networks beside the float one: each method to find ranges, and each layer.

The difference is the matching loss, which quantisation-aware training minimises too.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.export.onnx import export_float
from models.networks.hybrid import Answers
from models.quantization.ptq import METHODS, calibration, quantize
from models.quantization.sensitivity import (
    distance,
    sensitivity,
    sensitivity_batches,
    trained_simulation,
)
from models.quantization.simulation import Simulation, exact_weights
from models.runtime.artifacts import every


def layers(network: nn.Module, kind: str, data: Path, qat: Path | None) -> list[dict[str, Any]]:
    """Return the report on every layer, see `models.quantization.sensitivity.Layer`."""
    simulation = trained_simulation(network, kind, qat)
    found = sensitivity(simulation, network, sensitivity_batches(data, kind))
    return [{k: v for k, v in asdict(layer).items() if k != "name"} for layer in found]


def ranges(network: nn.Module, kind: str, data: Path, qat: Path | None) -> list[dict[str, Any]]:
    """Return the difference of INT8 from float on validation for each method to find ranges.

    The last row is the registered file, if there is one: see `trained_simulation`.
    """
    exact = export_float(network, kind)
    weights = exact_weights(exact)
    given, batches = list(calibration(kind, data)), sensitivity_batches(data, kind, "val")
    with torch.no_grad():
        wanted = [network(batch) for batch in batches]
    # each method on the same batches, before any training
    simulations = {
        method: Simulation(quantize(exact, kind, given, method=method), weights).eval()
        for method in METHODS
    }
    if qat is not None or f"{kind}-int8" in every():
        simulations["registered"] = trained_simulation(network, kind, qat)
    return [
        {
            "ranges": name,
            **distance(simulation, batches, wanted),
            "strongest": strongest(simulation, batches, wanted),
        }
        for name, simulation in simulations.items()
    ]


@torch.no_grad()
def strongest(simulation: Simulation, batches: Sequence[Tensor], wanted: Sequence[Any]) -> float:
    """Return the root mean square difference of each batch's highest nodule logit.

    Ranges that cut off strong activations change it, which the mean over a map hides.
    """
    change = []
    for batch, aim in zip(batches, wanted, strict=True):
        one, other = (
            (out[0] if isinstance(aim, Answers) else out[:, 0]).flatten()
            for out in (simulation(batch), aim)
        )
        change.append((one - other)[other.argmax()])
    return float(torch.stack(change).square().mean().sqrt())
