"""Quantisation-aware training in three phases, from trained weights to an INT8 file.

1. Fake-quant insertion: the quantiser decides what is rounded; the simulation rounds the same.
2. Range calibration: the first ranges come from training material (`models.compression.quantize`).
3. Fine-tuning: weights and ranges learn to answer as the float network does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
from torch import nn

from models.compression.simulation import Simulation, exact_weights, stored_weights
from models.networks.hybrid import Answers
from models.training.loop import Plan, Task, train
from models.training.matching import MatchTask

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
