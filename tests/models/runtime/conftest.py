"""Small real ONNX artifacts that the runtime's tests open."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MANIFEST = """
["{name}"]
file = "{name}.onnx"
sha256 = "{sha}"
version = "{sha:.12}"
kind = "{kind}"
precision = "fp32"
[{name}.settings]
calibration = [1.0, 0.0]
roi_shape = [8, 8, 8]
"""


def bright_screening() -> onnx.ModelProto:
    """A screening model whose heat is large where a 4^3 cell is bright: 20 * mean / 255 - 10."""
    weight = np.zeros((5, 1, 4, 4, 4), np.float32)
    weight[0] = 20 / 64 / 255
    bias = np.array([-10, 0, 0, 0, np.log(6)], np.float32)
    return _model(
        [
            helper.make_node("Cast", ["voxels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["float", "w", "b"], ["maps"], strides=[4, 4, 4]),
        ],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        ["n", 1, "z", "y", "x"],
        {"maps": ["n", 5, "a", "b", "c"]},
    )


def bright_hybrid() -> onnx.ModelProto:
    """A hybrid model for regions of any size: logit = mean / 255, ln of the diameter = ln 5.

    Its malignancy is its logit, its texture always the second class, and its mask is where the
    region is brighter than half.
    """
    return _model(
        [
            helper.make_node("Cast", ["voxels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["mean5"], axes=[2, 3, 4], keepdims=0),
            helper.make_node("Div", ["mean5", "full"], ["logit"]),
            helper.make_node("Mul", ["logit", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "size"], ["log_diameter"]),
            helper.make_node("Identity", ["logit"], ["malignancy"]),
            helper.make_node("Concat", ["nothing", "logit", "nothing"], ["texture"], axis=1),
            helper.make_node("Sub", ["float", "half"], ["mask"]),
        ],
        [
            numpy_helper.from_array(np.array(255, np.float32), "full"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.array(127.5, np.float32), "half"),
            numpy_helper.from_array(np.array(np.log(5), np.float32), "size"),
        ],
        ["n", 1, "z", "y", "x"],
        {
            **{name: ["n", 1] for name in ("logit", "log_diameter", "malignancy")},
            "texture": ["n", 3],
            "mask": ["n", 1, "z", "y", "x"],
        },
    )


def _model(
    nodes: list[onnx.NodeProto],
    initializers: list[TensorProto],
    shape: list[str | int],
    outputs: dict[str, list[str | int]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("voxels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder with `bright-screening` and `bright-hybrid`."""
    text = ""
    for name, kind, model in (
        ("bright-screening", "screening", bright_screening()),
        ("bright-hybrid", "hybrid", bright_hybrid()),
    ):
        content = model.SerializeToString()
        (tmp_path / f"{name}.onnx").write_bytes(content)
        sha = hashlib.sha256(content).hexdigest()
        text += MANIFEST.format(name=name, sha=sha, kind=kind)
    (tmp_path / "manifest.toml").write_text(text)
    return tmp_path
