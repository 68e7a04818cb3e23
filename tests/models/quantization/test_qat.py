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
from models.training.loop import Plan
from tests.models.small_networks import SmallTask, pictures, shown, square_error


def picture_task(network: nn.Module) -> SmallTask:
    """A task whose batches are pictures; it has no loss for them, matching has one of its own."""
    batch = {"voxels": torch.from_numpy(pictures(2)), "label": torch.zeros(2)}
    return SmallTask(network, lambda _: batch, square_error)


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
def test_lowering_in_stages_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The float network stays as it is."""
    torch.manual_seed(1)
    network = shown(ScreeningNetwork(ScreeningSpec((8, 16, 16, 32), (1, 1, 1))), 6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    exact = export_float(network, "screening")
    small = quantize(exact, "screening", (pictures(4)[n : n + 1] for n in range(4)))
    files = []
    for resume in (False, True):
        plan = Plan(tmp_path, minutes=0.01 * STAGES, rate=1e-4, resume=resume)
        simulation = Simulation(small, exact_weights(exact))
        chosen = simulation.weights()[-3:]
        task = picture_task(network)
        files.append(lower_in_stages(simulation, network, task, plan, chosen))
    assert files[0].SerializeToString() == files[1].SerializeToString()
    onnx.checker.check_model(files[0])
    kinds = [t.data_type for t in files[0].graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 2 * len(chosen)  # weights and zero points
    assert (tmp_path / f"stage{STAGES}" / "averaged.pt").exists()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
