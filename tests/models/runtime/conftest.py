"""Small real ONNX artifacts that the runtime's tests open."""

import hashlib
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

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
outline = [0.0]
"""


def bright_screening() -> onnx.ModelProto:
    """A screening model whose heat is large where a 4^3 cell is bright: 20 * mean / 255 - 10."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        small (uint8[n, 1, z, y, x] voxels) => (float[n, 5, a, b, c] maps) {
            grey = Cast <to = 1> (voxels)
            maps = Conv <strides = [4, 4, 4]> (grey, w, b)
        }""")
    weight = np.zeros((5, 1, 4, 4, 4), np.float32)
    weight[0] = 20 / 64 / 255
    bias = np.array([-10, 0, 0, 0, np.log(6)], np.float32)
    tensors = (numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b"))
    model.graph.initializer.extend(tensors)
    return model


def bright_hybrid() -> onnx.ModelProto:
    """A hybrid model for regions of any size: logit = mean / 255, ln of the diameter = ln 5.

    Its malignancy is its logit, its texture always the second class, and its mask is where the
    region is brighter than half.
    """
    return onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        small (uint8[n, 1, z, y, x] voxels) => (
            float[n, 1] logit, float[n, 1] log_diameter, float[n, 1] malignancy,
            float[n, 3] texture, float[n, 1, z, y, x] mask
        ) <float full = {255}, float zero = {0}, float half = {127.5}, float size = {1.6094379}> {
            grey = Cast <to = 1> (voxels)
            mean = ReduceMean <axes = [2, 3, 4], keepdims = 0> (grey)
            logit = Div (mean, full)
            nothing = Mul (logit, zero)
            log_diameter = Add (nothing, size)
            malignancy = Identity (logit)
            texture = Concat <axis = 1> (nothing, logit, nothing)
            mask = Sub (grey, half)
        }""")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
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
