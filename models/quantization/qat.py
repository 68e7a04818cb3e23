"""Quantisation-aware training: from trained weights to an INT8 file, and from INT8 to INT4.

INT8 takes three steps. (1) Post-training quantisation decides what is rounded, and the simulation
rounds the same. (2) The first ranges come from training material (`models.quantization.ptq`).
(3) Weights, scales and zero points learn to give the float network's outputs; labels are not
needed.

INT4 starts from that simulation. The least sensitive layers are lowered in stages, as many as the
file's size demands; after each stage weights and ranges learn again.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from models.export.manifest import register
from models.export.onnx import export_float
from models.quantization.ptq import calibration, quantize
from models.quantization.sensitivity import (
    match_loss,
    select_layers,
    sensitivity,
    sensitivity_batches,
    trained_simulation,
)
from models.quantization.simulation import Simulation, exact_weights, to_onnx
from models.runtime.artifacts import find
from models.runtime.errors import NoWeights, UnfitArtifact
from models.training.data import Batch
from models.training.loop import Plan, Task, placed, train
from models.training.runs import Run, make_network, make_screening, task_of

STAGES = 3


def run_qat(run: Run, kind: str, screening: Sequence[Path], method: str) -> None:
    """Register `KIND-int8`, trained to give the outputs of the float network ``run.start``.

    ``screening`` is for a hybrid: the screening networks whose candidates it reads.
    """
    # the first ranges, then the simulation that is trained, then its file
    network, screeners = _networks(run, kind, screening)
    exact = export_float(network, kind)
    require_parent(exact, kind)
    small = quantize(exact, kind, calibration(kind, run.data), method=method)
    material = run.material()
    task = task_of(network, material, screeners)
    simulation = Simulation(small, exact_weights(exact))
    plan = run.plan(material, decay=0.0, method=method, screening=[*map(str, screening)])
    trained = fine_tune(simulation, network, task, plan)
    register(
        f"{kind}-int8", to_onnx(trained), parent=f"{kind}-fp32",
        method=f"quantisation-aware training, ranges from {method}", runs=[run.out],
    )  # fmt: skip


def require_parent(exact: onnx.ModelProto, kind: str) -> None:
    """Check that a float network is the registered one, which its INT8 file is entered under.

    Raises:
        UnfitArtifact: it is another one.
    """
    name = f"{kind}-fp32"
    registered = exact_weights(onnx.load_model_from_string(find(name).content()))
    for key, value in exact_weights(exact).items():
        other = registered.get(key, np.zeros(0))
        if value.shape != other.shape or not np.allclose(value, other, rtol=1e-2, atol=1e-3):
            raise UnfitArtifact(f"{name} is not the network that --start gives: {key}; export it")


def run_int4(
    run: Run, kind: str, qat: Path | None, screening: Sequence[Path], share: float
) -> None:
    """Register `KIND-int4`, a file of at most ``share`` of FP32's if INT4 in all layers gives that.

    It starts from the weights ``qat`` of the INT8 run or, if None, from the registered INT8 file.
    ``screening`` is as for `run_qat`.
    """
    network, screeners = _networks(run, kind, screening)
    # choose layers by their sensitivity until the file is small enough, then lower and train
    simulation = trained_simulation(network, kind, qat)
    layers = sensitivity(simulation, network, sensitivity_batches(run.data, kind))
    max_bytes = int(find(f"{kind}-fp32").path.stat().st_size * share)
    chosen = select_layers(layers, to_onnx(simulation).ByteSize(), max_bytes)
    material = run.material()
    task = task_of(network, material, screeners)
    files = [str(path) for path in (*screening, *filter(None, [qat]))]
    parent = find(f"{kind}-int8").sha256[:12]
    plan = run.plan(material, decay=0.0, share=share, int8=parent, screening=files)
    small = lower_in_stages(simulation, network, task, plan, chosen)
    lowered = sum(layer.parameters for layer in layers if layer.name in chosen)
    part = lowered / sum(layer.parameters for layer in layers)
    register(
        f"{kind}-int4", small, parent=f"{kind}-int8",
        method=f"{len(chosen)} of {len(layers)} layers ({part:.0%} of the weights) in INT4",
        runs=_stages(run.out),
    )  # fmt: skip


def _networks(
    run: Run, kind: str, screening: Sequence[Path]
) -> tuple[nn.Module, Sequence[nn.Module]]:
    """Return the float network and the screening networks whose candidates a hybrid reads."""
    if kind == "hybrid" and not screening:
        raise NoWeights("--screening is missing: a hybrid trains on screening networks' candidates")
    screeners = [make_screening(path).eval() for path in screening]
    torch.manual_seed(run.seed)
    return make_network(kind, run.start).eval(), screeners


def lower_in_stages(
    simulation: Simulation, network: nn.Module, base: Task, plan: Plan, chosen: Sequence[str]
) -> onnx.ModelProto:
    """Return the file with the weights ``chosen`` in INT4, trained ``plan.steps`` in all."""
    # each stage lowers the next third of the layers and trains for a third of the steps
    for stage, out in enumerate(_stages(plan.out)):
        first, last = (round(len(chosen) * part / STAGES) for part in (stage, stage + 1))
        for name in chosen[first:last]:
            simulation.lower(name, 4)
        part = replace(plan, out=out, steps=plan.steps // STAGES, seed=plan.seed + stage)
        simulation = fine_tune(simulation, network, base, part)
    return to_onnx(simulation)


def _stages(out: Path) -> list[Path]:
    return [out / f"stage{stage + 1}" for stage in range(STAGES)]


def fine_tune(simulation: Simulation, network: nn.Module, base: Task, plan: Plan) -> Simulation:
    """Train the simulation to give the outputs of the float ``network`` on ``base``'s batches.

    In full precision: bfloat16 rounds products as coarsely as INT8 does and would hide its effect.
    """
    reference = copy.deepcopy(network).eval().requires_grad_(False)
    task = MatchTask(base, reference, simulation)
    # what was trained before is in the entry of the artifact's parent
    trained = train(task, replace(plan, half=False, facts={**plan.facts, "start": []}))
    assert isinstance(trained, Simulation)  # `train` returns the network of the task
    return trained.cpu()


class MatchTask:
    """Trains ``network`` to give what ``reference`` gives for the voxels of ``base``'s batches."""

    def __init__(self, base: Task, reference: nn.Module, network: nn.Module) -> None:
        self.network, self.refresh, self.evaluate = network, base.refresh, base.evaluate
        self._base, self._reference = base, placed(reference)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the voxels of the base's batches."""
        return ({"voxels": batch["voxels"]} for batch in self._base.batches(seed))

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of `match_loss`."""
        unit = batch["voxels"].float() / 255
        with torch.no_grad():
            wanted = self._reference(unit)
        return match_loss(network(unit), wanted)
