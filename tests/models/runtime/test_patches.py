"""Files laid out anew answer as before."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.runtime.artifacts import find
from models.runtime.patches import laid_out


def transposed(stride: int, *, bias: bool) -> bytes:
    """A file of one transposed convolution, kernel 2, of three channels to five."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5, 2, 2, 2)).astype(np.float32)
    tensors = [numpy_helper.from_array(weight, "w")]
    tensors += [numpy_helper.from_array(np.arange(5, dtype=np.float32), "b")] if bias else []
    head = helper.make_node("Relu", ["x"], ["r"])
    node = helper.make_node(
        "ConvTranspose", ["r", *(t.name for t in tensors)], ["y"], "up",
        kernel_shape=[2, 2, 2], strides=[stride] * 3,
    )  # fmt: skip
    graph = helper.make_graph(
        [head, node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "z", "y", "x"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def answer(content: bytes, x: np.ndarray, name: str) -> list[np.ndarray]:
    """What onnxruntime says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options)
    return list(session.run(None, {name: x}))


@pytest.mark.parametrize("bias", [True, False])
def test_patches_land_where_they_did(bias: bool) -> None:
    """For batches of any size, on sides that differ."""
    content = transposed(2, bias=bias)
    new = laid_out(content)
    assert "ConvTranspose" not in {n.op_type for n in onnx.load_from_string(new).graph.node}
    x = np.random.default_rng(1).standard_normal((3, 3, 4, 5, 6)).astype(np.float32)
    (found,), (wanted,) = answer(new, x, "x"), answer(content, x, "x")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_older_file_stays() -> None:
    """Its operators cannot cut a shape."""
    model = onnx.load_from_string(transposed(2, bias=True))
    model.opset_import[0].version = 13
    assert laid_out(model.SerializeToString()) == model.SerializeToString()


def test_what_overlaps_stays() -> None:
    """The same bytes."""
    content = transposed(1, bias=True)
    assert laid_out(content) == content


def test_the_shipped_hybrid_answers_as_its_file() -> None:
    """Every output of it."""
    content = find("hybrid-fp32").content()
    new = laid_out(content)
    assert new != content
    x = np.random.default_rng(2).integers(0, 256, (2, 1, 48, 48, 48), dtype=np.uint8)
    for found, wanted in zip(answer(new, x, "voxels"), answer(content, x, "voxels"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
