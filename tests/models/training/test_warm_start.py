from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.export.onnx import export_float, export_fp32
from models.networks.hybrid import HybridNetwork
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.quantization.ptq import quantize
from models.runtime.errors import UnfitArtifact
from models.training.runs import make_network, make_screening
from models.training.warm_start import settle_norms, weights_of_artifact
from tests.models.small_networks import TINY_HYBRID

SMALL = ScreeningSpec((8, 16, 16, 32), (1, 2, 1))


def lived_in(network: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    rng = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3, generator=rng)
            part.running_var.uniform_(0.2, 2, generator=rng)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=rng)
            nn.init.normal_(part.bias, 0, 0.2, generator=rng)
    return network.eval()


def boxes() -> torch.Tensor:
    return torch.rand(2, 1, 48, 48, 48, generator=torch.Generator().manual_seed(2))


def exported(network: nn.Module, kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.onnx"
    onnx.save(export_fp32(network, kind), path)
    return path


@pytest.mark.parametrize("kind", ["screening", "hybrid"])
def test_a_network_comes_back_from_its_float_artifact(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork(SMALL) if kind == "screening" else HybridNetwork(TINY_HYBRID)
    path = exported(lived_in(network), kind, tmp_path)
    back = make_network(kind, [path]).eval()
    with torch.inference_mode():
        torch.testing.assert_close(back(boxes()), network(boxes()), atol=1e-4, rtol=1e-4)


def test_settled_norms_compute_the_same_also_in_training(tmp_path: Path) -> None:
    """Statistics are those of what it is fed, so that nothing jumps when training begins."""
    torch.manual_seed(0)
    network = lived_in(ScreeningNetwork(SMALL))
    back = make_screening(exported(network, "screening", tmp_path))
    settle_norms(back, [boxes()])
    with torch.inference_mode():
        wanted = network(boxes())
        torch.testing.assert_close(back.eval()(boxes()), wanted, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(back.train()(boxes())[:, :5], wanted, atol=1e-2, rtol=1e-2)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    network = lived_in(ScreeningNetwork(SMALL))
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (1, 1, 32, 32, 32), dtype=np.uint8)
    onnx.save(
        quantize(export_float(network, "screening"), "screening", [batch]), tmp_path / "q.onnx"
    )
    with pytest.raises(UnfitArtifact, match="quantised"):
        weights_of_artifact(tmp_path / "q.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UnfitArtifact, match="not an ONNX file"):
        weights_of_artifact(tmp_path / "text.onnx")
