"""Quantisation-aware training in three phases, from trained weights to an INT8 file.

1. Fake-quant insertion: the quantiser decides what is rounded; the simulation rounds the same.
2. Range calibration: the first ranges come from training material (`models.quantization.ptq`).
3. Fine-tuning: weights and ranges learn to answer as the float network does.

Progressively from INT8 to INT4: layer by layer, those that mind least first.

A trained INT8 simulation has its weights lowered in stages; after each, weights and ranges learn
again to answer as the float network does. Which layers go, the budget says: the file's size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn

from models.networks.hybrid import Answers
from models.quantization.matching import MatchTask
from models.quantization.sensitivity import Layer, cheapest, sensitivity
from models.quantization.simulation import Simulation, exact_weights, stored_weights, written
from models.training.loop import Plan, Task, train

ANSWERS: dict[str, Callable[..., Any]] = {"screening": lambda maps: maps, "hybrid": Answers}
"""What makes the outputs of an artifact what its network gives."""


def simulate(quantized: onnx.ModelProto, exact: onnx.ModelProto, kind: str) -> Simulation:
    """The torch form of a quantised file; ``exact`` is the float export of the same network."""
    return Simulation(quantized, exact_weights(exact), ANSWERS[kind])


def simulate_file(quantized: onnx.ModelProto, kind: str) -> Simulation:
    """The torch form of a quantised file by itself: its weights are those that it holds."""
    return Simulation(quantized, stored_weights(quantized), ANSWERS[kind])


def fine_tune(
    simulation: Simulation, network: nn.Module, base: Task, plan: Plan, *, resume: bool = False
) -> Simulation:
    """The simulation after the third phase; ``network`` is the float one that it shall match.

    In full precision: bfloat16 rounds products as coarsely as INT8 does, and what is to be learnt
    would drown in it.
    """
    reference = copy.deepcopy(network).eval().requires_grad_(False)
    learnt = train(MatchTask(base, reference, simulation), replace(plan, half=False), resume=resume)
    assert isinstance(learnt, Simulation)  # `train` gives back what the task trains
    return learnt.cpu()


STAGES = 3


def lower_step_by_step(
    simulation: Simulation,
    network: nn.Module,
    base: Task,
    plan: Plan,
    chosen: Sequence[str],
    *,
    resume: bool = False,
) -> onnx.ModelProto:
    """The file with the weights ``chosen`` in INT4, in their order; ``plan.minutes`` in all."""
    learnt = simulation
    for stage in range(STAGES):
        first, last = (round(len(chosen) * part / STAGES) for part in (stage, stage + 1))
        for name in chosen[first:last]:
            learnt.lower(name, 4)
        out, minutes = plan.out / f"stage{stage + 1}", plan.minutes / STAGES
        learnt = fine_tune(
            learnt, network, base, replace(plan, out=out, minutes=minutes), resume=resume
        )
    return written(learnt)


def choose(
    simulation: Simulation, network: nn.Module, batches: Sequence[torch.Tensor], wanted: int
) -> tuple[list[Layer], list[str]]:
    """Every layer's report, and the weights to lower so that the file has ``wanted`` bytes."""
    layers = sensitivity(simulation, network, batches)
    return layers, cheapest(layers, written(simulation).ByteSize(), wanted)
