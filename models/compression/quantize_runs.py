"""The commands of learnt rounding: material, simulation and plan put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from models.compression.export import export_float
from models.compression.int4 import choose, lower_step_by_step
from models.compression.qat import fine_tune, simulate, simulate_file
from models.compression.quantize import METHODS, quantize
from models.compression.runs import MAKERS, calibration, enter
from models.compression.sensitivity import Layer, distance, sensitivity
from models.compression.simulation import Simulation, exact_weights, parameter_name
from models.compression.writing import written
from models.networks.screening import ScreeningNetwork
from models.runtime.artifacts import every, find
from models.runtime.errors import NoWeights, UnfitArtifact
from models.training.runs import Run, load_weights, make_screening, task_of

ANOTHER = 0.5
"""Weights that are further apart, as a part of their norm, are another network's."""

LOOKED_AT = 24
"""Of the calibration's batches every so manieth is looked at, so that at least these are left."""


def run_qat(run: Run, kind: str, screening: Sequence[Path], method: str) -> None:
    """Registers `KIND-int8` anew, trained to answer as the float network that ``run`` starts from.

    ``screening`` is for a hybrid: the networks whose candidates it reads, the last one's its own.
    """
    screeners, network = _screeners(kind, screening), _network(run, kind)
    exact = export_float(network, kind)
    small = quantize(exact, kind, calibration(kind, run.data), method=method)
    task = task_of(network, run.material(), screeners)
    simulation = simulate(small, exact, kind)
    learnt = fine_tune(simulation, network, task, run.plan(decay=0.0), resume=run.resume)
    enter(
        f"{kind}-int8", written(learnt), parent=f"{kind}-fp32",
        method=f"quantisation-aware training, {run.minutes:g} minutes, ranges from {method}",
    )  # fmt: skip


def run_int4(
    run: Run, kind: str, qat: Path | None, screening: Sequence[Path], share: float
) -> None:
    """Registers `KIND-int4`, a file of at most ``share`` of FP32's.

    It is made from the INT8 run ``qat`` or, if None, from the registered INT8 file. With
    every layer in INT4 it is as small as it gets. ``screening`` is as for `run_qat`.
    """
    screeners, network = _screeners(kind, screening), _network(run, kind)
    simulation = _learnt(network, kind, qat)
    wanted = int(find(f"{kind}-fp32").path.stat().st_size * share)
    layers, chosen = choose(simulation, network, _looked_at(run.data, kind), wanted)
    task = task_of(network, run.material(), screeners)
    plan = run.plan(decay=0.0)
    small = lower_step_by_step(simulation, network, task, plan, chosen, resume=run.resume)
    lowered = sum(one.parameters for one in layers if one.name in chosen)
    part = lowered / sum(one.parameters for one in layers)
    enter(
        f"{kind}-int4", small, parent=f"{kind}-int8",
        method=f"{len(chosen)} of {len(layers)} layers ({part:.0%} of the weights) in INT4, "
        f"{run.minutes:g} minutes",
    )  # fmt: skip


def run_sensitivity(kind: str, data: Path, start: Path, qat: Path | None) -> list[dict[str, Any]]:
    """Every layer's report, as JSON holds it."""
    network = MAKERS[kind](start).eval()
    simulation = _learnt(network, kind, qat)
    return [_row(layer) for layer in sensitivity(simulation, network, _looked_at(data, kind))]


def run_ranges(kind: str, data: Path, start: Path, qat: Path | None) -> list[dict[str, Any]]:
    """How far INT8 is from float on validation, for each way to find the first ranges.

    What training made of it stands last: from the run ``qat``, or from the registered file if None
    and if there is one.
    """
    network = MAKERS[kind](start).eval()
    exact = export_float(network, kind)
    learnt_from, batches = list(calibration(kind, data)), _looked_at(data, kind, "val")
    rows = []
    for method in METHODS:
        small = quantize(exact, kind, learnt_from, method=method)
        simulation = simulate(small, exact, kind).eval()
        rows.append({"ranges": method, **distance(simulation, network, batches)})
    if qat is not None or f"{kind}-int8" in every():
        learnt = _learnt(network, kind, qat)
        rows.append({"ranges": "learnt", **distance(learnt, network, batches)})
    return rows


def _row(layer: Layer) -> dict[str, Any]:
    return {key: value for key, value in asdict(layer).items() if key != "name"}


def _network(run: Run, kind: str) -> nn.Module:
    if run.start is None:
        raise NoWeights("--start: quantisation starts from trained weights")
    torch.manual_seed(run.seed)
    return MAKERS[kind](run.start).eval()


def _learnt(network: nn.Module, kind: str, qat: Path | None) -> Simulation:
    """The simulation that the INT8 run left; the registered file says what is rounded where.

    Without the run it begins with what the file holds: the weights as they were rounded.
    """
    model = onnx.load_model_from_string(find(f"{kind}-int8").content())
    if qat is None:
        return _of_network(simulate_file(model, kind).eval(), network, kind)
    simulation = simulate(model, export_float(network, kind), kind)
    try:
        simulation.load_state_dict(load_weights(qat))
    except RuntimeError as error:
        raise UnfitArtifact(f"{qat}: not of the run that made {kind}-int8: {error}") from error
    return simulation.eval()


def _of_network(simulation: Simulation, network: nn.Module, kind: str) -> Simulation:
    """The simulation, if its weights are the float network's up to rounding and training for it."""
    exact = exact_weights(export_float(network, kind))
    for name in simulation.weights():
        mine = simulation.exact[parameter_name(name)].detach().numpy()
        other = exact.get(name, np.zeros(0))
        same = other.shape == mine.shape
        if not same or np.linalg.norm(mine - other) > ANOTHER * np.linalg.norm(other):
            raise UnfitArtifact(f"{kind}-int8 is not of the network that --start gives: {name}")
    return simulation


def _looked_at(data: Path, kind: str, split: str = "train") -> list[torch.Tensor]:
    batches = list(calibration(kind, data, split))
    step = max(1, len(batches) // LOOKED_AT)
    return [torch.from_numpy(batch).float() / 255 for batch in batches[::step]]


def _screeners(kind: str, paths: Sequence[Path]) -> list[ScreeningNetwork]:
    if kind == "hybrid" and not paths:
        raise NoWeights("--screening: a hybrid learns from candidates of screening networks")
    return [make_screening(path).eval() for path in paths]
