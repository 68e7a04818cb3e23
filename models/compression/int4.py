"""Progressively from INT8 to INT4: layer by layer, those that mind least first.

A trained INT8 simulation has its weights lowered in stages; after each, weights and ranges learn
again to answer as the float network does. Which layers go, the budget says: the file's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import torch
from torch import nn

from models.compression.qat import fine_tune
from models.compression.sensitivity import Layer, cheapest, sensitivity
from models.compression.simulation import Simulation
from models.compression.writing import written
from models.training.loop import Plan, Task

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
    simulation: Simulation,
    network: nn.Module,
    batches: Sequence[torch.Tensor],
    wanted: int,
) -> tuple[list[Layer], list[str]]:
    """Every layer's report, and the weights to lower so that the file has ``wanted`` bytes."""
    layers = sensitivity(simulation, network, batches)
    return layers, cheapest(layers, written(simulation).ByteSize(), wanted)
