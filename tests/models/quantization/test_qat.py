"""Quantisation-aware training from end to end: a task goes in, a smaller file comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.export.onnx import export_float
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.quantization.ptq import quantize
from models.quantization.qat import STAGES, lower_in_stages
from models.quantization.simulation import Simulation, exact_weights
from models.training.data import Batch
from models.training.loop import Plan
from tests.models.small_networks import pictures


class Pictures:
    """A task whose batches are pictures."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.refreshed: list[nn.Module] = []

    def batches(self, seed: int) -> Iterator[Batch]:
        del seed
        while True:
            yield {"voxels": torch.from_numpy(pictures(2)), "label": torch.zeros(2)}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        raise AssertionError(network, batch)

    def refresh(self, network: nn.Module) -> None:
        self.refreshed.append(network)

    def judge(self, network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            return {"heat": float(network(torch.from_numpy(pictures(1)).float() / 255).mean())}


@pytest.fixture
def network() -> nn.Module:
    """A small screening network that has seen pictures."""
    torch.manual_seed(1)
    network = ScreeningNetwork(ScreeningSpec((8, 16, 16, 32), (1, 1, 1)))
    with torch.no_grad():
        for _ in range(6):
            network(torch.from_numpy(pictures(2)).float() / 255)
    return network.eval()


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
def test_lowering_in_stages_goes_on_from_its_checkpoint(network: nn.Module, tmp_path: Path) -> None:
    """The float network stays as it is."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    exact = export_float(network, "screening")
    small = quantize(exact, "screening", (pictures(4)[n : n + 1] for n in range(4)))
    plan = Plan(tmp_path, minutes=0.01 * STAGES, rate=1e-4)
    files = []
    for resume in (False, True):
        simulation = Simulation(small, exact_weights(exact))
        chosen = simulation.weights()[-3:]
        task = Pictures(network)
        files.append(lower_in_stages(simulation, network, task, plan, chosen, resume=resume))
    assert files[0].SerializeToString() == files[1].SerializeToString()
    onnx.checker.check_model(files[0])
    kinds = [t.data_type for t in files[0].graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 2 * len(chosen)  # weights and zero points
    assert (tmp_path / f"stage{STAGES}" / "averaged.pt").exists()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
