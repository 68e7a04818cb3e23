"""Cutting a network into parts that say what the whole says."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from models.export.manifest import register
from models.export.onnx import export_fp32
from models.networks.hybrid import HybridNetwork
from models.runtime.artifacts import find
from models.runtime.errors import UnfitArtifact
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session
from models.runtime.stages import Tensors, cut, even_cuts, open_staged
from tests.models.small_networks import SMALL_HYBRID


def ladder() -> onnx.ModelProto:
    """X -> a -> b -> y with a skip from a to y, an early output z of a, and a shape of the batch.

    b goes through a quantised tensor, and the last layer asks for b's own shape.
    """
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 17]>
        ladder (float[n, 4] x) => (float[n, 4] y, float[n, 1] z)
        <float[4, 4] w = {0.1, -0.1, 0.6, 0.1, -0.5, 0.4, 1.3, 0.9, -0.7, -1.3, -0.6, 0, -2.3, -0.2,
         -1.2, -0.7}, int64[1] axis = {1}, float s = {0.02}, uint8 zero = {0},
         float[1, 1] one = {0.5}>
        {
            ax = MatMul(x, w)
            a = Relu(ax)
            z = ReduceSum <keepdims = 1> (a, axis)
            aq = QuantizeLinear(a, s, zero)
            ad = DequantizeLinear(aq, s, zero)
            b = MatMul(ad, w)
            shape = Shape(b)
            ones = Expand(one, shape)
            c = Mul(b, ones)
            y = Add(c, ad)
        }
    """)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, given: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    taken = {one.name: given[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def names(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


@pytest.mark.parametrize("positions", [[2], [6], [2, 6], [4, 9]])
def test_the_parts_say_what_the_whole_says(positions: list[int]) -> None:
    model = ladder()
    given = {"x": np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)}
    tensors = dict(given)
    for part in cut(model, positions):
        tensors |= run(part, tensors)
    for name, value in run(model, given).items():
        np.testing.assert_array_equal(tensors[name], value)


def test_only_what_is_needed_crosses_and_as_bytes() -> None:
    """The skip crosses quantised, each side dequantises it, and an early output is given early."""
    first, second, third = cut(ladder(), [3, 6])
    assert (names(first.graph.input), names(first.graph.output)) == (["x"], ["a", "z"])
    assert (names(second.graph.input), names(second.graph.output)) == (["a"], ["aq", "b"])
    assert (sorted(names(third.graph.input)), names(third.graph.output)) == (["aq", "b"], ["y"])
    crossing = {value.name: value for value in third.graph.input}["aq"]
    assert crossing.type.tensor_type.elem_type == TensorProto.UINT8
    sides = crossing.type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["n", 4]


def test_a_part_without_work_and_a_tensor_without_a_batch_axis_are_refused() -> None:
    """A tensor without an axis for the batch would be wrong in batches of another size."""
    model = ladder()
    with pytest.raises(ValueError, match="would be empty"):
        cut(model, [2, 2])
    total = helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0)
    model.graph.node.insert(3, total)
    model.graph.node.append(helper.make_node("Add", ["z", "total"], ["z2"]))
    model.graph.output[1].name = "z2"
    with pytest.raises(ValueError, match=r"total crosses a cut"):
        cut(model, [4])


@pytest.fixture(scope="module")
def hybrid() -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_fp32(HybridNetwork(SMALL_HYBRID).eval(), "hybrid")


def regions(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 48, 48, 48), dtype=np.uint8)


def test_three_stages_read_as_the_whole_does_each_on_its_engine(
    hybrid: onnx.ModelProto, tmp_path: Path
) -> None:
    register("hybrid-fp32", hybrid, parent="", folder=tmp_path)
    engines = ["onnxruntime", "openvino", "onnxruntime"]
    whole = SecondReader(open_session(find("hybrid-fp32", tmp_path), engine="onnxruntime"))
    staged = open_staged("hybrid-fp32", 3, engine="onnxruntime", engines=engines, folder=tmp_path)
    assert (staged.name, staged.version) == (whole.name, whole.version)
    assert [part.session.engine for part in staged.parts] == engines
    assert staged.engine == "onnxruntime + openvino"
    for count in (1, 3):
        one, other = whole.read(regions(count)), staged.read(regions(count))
        for name in ("probability", "diameter_mm", "malignancy"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4)
        np.testing.assert_array_equal(one.texture, other.texture)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert len(staged.steps) == 3
    with pytest.raises(UnfitArtifact, match="cannot be cut into 500 parts"):
        open_staged("hybrid-fp32", 500, folder=tmp_path)


def test_cuts_are_at_equal_shares_of_the_time(hybrid: onnx.ModelProto) -> None:
    """With half of it in each of two nodes between these; with all in one still apart."""
    convolutions = [i for i, n in enumerate(hybrid.graph.node) if n.op_type == "Conv"]

    def cuts(count: int, busy: list[int]) -> list[int]:
        return even_cuts(hybrid, [float(i in busy) for i in range(len(hybrid.graph.node))], count)

    (position,) = cuts(2, convolutions[4:6])
    assert convolutions[4] < position <= convolutions[5]
    assert len(cut(hybrid, cuts(3, [convolutions[0] + 6]))) == 3
