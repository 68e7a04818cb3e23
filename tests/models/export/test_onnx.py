from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.export.manifest import UNFITTED, amend, register
from models.export.onnx import export_float, export_fp32
from models.networks.hybrid import HybridNetwork
from models.quantization.ptq import quantize
from models.runtime.artifacts import find
from models.runtime.session import open_session
from tests.models.small_networks import (
    SMALL_HYBRID,
    exported,
    pictures,
    quantized,
    settled,
    shown,
    told,
)


def served(
    model: onnx.ModelProto, kind: str, precision: str, folder: Path, engine: str = "openvino"
) -> list[np.ndarray]:
    register(f"{kind}-{precision}", model, parent="", folder=folder)
    artifact = find(f"{kind}-{precision}", folder)
    return list(open_session(artifact, engine=engine).run(pictures(3)))


@pytest.mark.parametrize("kind", ["screening", "hybrid"])
def test_the_fp32_artifact_equals_the_torch_network(kind: str, tmp_path: Path) -> None:
    """uint8 in, the same float out, within rounding."""
    network = settled(kind)
    for a, b in zip(
        served(export_fp32(network, kind), kind, "fp32", tmp_path), told(network, 3), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("kind", ["screening", "hybrid"])
def test_the_int8_artifact_is_close_small_and_integer(kind: str, tmp_path: Path) -> None:
    """INT8 differs little, its file has less than 40 % of FP32, its input is integer."""
    network, small = settled(kind), onnx.load_from_string(quantized(kind))
    assert small.ByteSize() < 0.4 * len(exported(kind))
    assert small.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    onnx.checker.check_model(small)
    kept_float = ("up2", "back2")
    convolutions = [
        node
        for node in small.graph.node
        if node.op_type == "Conv" and not any(name in node.name for name in kept_float)
    ]
    makers = {out: node.op_type for node in small.graph.node for out in node.output}
    assert all(makers[node.input[0]] == "DequantizeLinear" for node in convolutions)
    for a, b in zip(served(small, kind, "int8", tmp_path), told(network, 3), strict=True):
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.15 * max(float(b.std()), 1.0)


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-3), ("int8", 0.25)])
def test_both_engines_agree_on_a_hybrid_of_three_scales(
    precision: str, apart: float, tmp_path: Path
) -> None:
    """On what resizes the views and joins the members, too.

    INT8 kernels differ: without VNNI sums are cut off.
    """
    torch.manual_seed(0)
    network = shown(HybridNetwork(replace(SMALL_HYBRID, reads=(24, 32, 48))), 4)
    model = export_fp32(network, "hybrid")
    if precision == "int8":
        pieces = (pictures(4)[n : n + 1] for n in range(4))
        model = quantize(export_float(network, "hybrid"), "hybrid", pieces)
    one, other = (
        served(model, "hybrid", precision, tmp_path, engine)
        for engine in ("openvino", "onnxruntime")
    )
    for a, b in zip(one, other, strict=True):
        assert np.sqrt(np.mean((a - b) ** 2)) < apart * max(float(b.std()), 1.0)


def test_the_manifest_keeps_other_entries_and_amends_one(tmp_path: Path) -> None:
    model = export_fp32(settled("hybrid"), "hybrid")
    for name in ("hybrid-fp32", "hybrid-other-fp32"):
        register(name, model, parent="", folder=tmp_path)
    amend("hybrid-fp32", "settings", {"outline": [1.0]}, tmp_path)
    assert find("hybrid-fp32", tmp_path).settings == UNFITTED["hybrid"] | {"outline": [1.0]}
    assert find("hybrid-other-fp32", tmp_path).settings == UNFITTED["hybrid"]
