"""A network in parts says what the whole says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.export.split import Example, split

EXAMPLES: tuple[Example, Example] = (
    {"x": np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)},
    {"x": np.linspace(-2, 1, 8, dtype=np.float32).reshape(2, 4)},
)


def ladder() -> onnx.ModelProto:
    """X -> a -> b -> y with a skip from a to y, an early output z of a, and a shape of the batch.

    b goes through a quantised tensor, and the last layer asks for b's own shape.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["ax"]),
        helper.make_node("Relu", ["ax"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["z"], keepdims=1),
        helper.make_node("QuantizeLinear", ["a", "s", "zero"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "s", "zero"], ["ad"]),
        helper.make_node("MatMul", ["ad", "w"], ["b"]),
        helper.make_node("Shape", ["b"], ["shape"]),
        helper.make_node("Expand", ["one", "shape"], ["ones"]),
        helper.make_node("Mul", ["b", "ones"], ["c"]),
        helper.make_node("Add", ["c", "ad"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 4)).astype(np.float32),
        "axis": np.array([1]),
        "s": np.array(0.02, np.float32),
        "zero": np.array(0, np.uint8),
        "one": np.array([[0.5]], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "ladder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, given: Example) -> dict[str, np.ndarray]:
    """The model's outputs by name, of what it takes of ``given``."""
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
    tensors: dict[str, np.ndarray] = dict(given)
    for part in split(model, positions, EXAMPLES):
        tensors |= run(part, tensors)
    for name, value in run(model, given).items():
        np.testing.assert_array_equal(tensors[name], value)


def test_only_what_is_needed_crosses_and_as_bytes() -> None:
    """The skip crosses quantised, each side dequantises it, and an early output is given early."""
    first, second, third = split(ladder(), [3, 6], EXAMPLES)
    assert (names(first.graph.input), names(first.graph.output)) == (["x"], ["a", "z"])
    assert (names(second.graph.input), names(second.graph.output)) == (["a"], ["aq", "b"])
    assert (sorted(names(third.graph.input)), names(third.graph.output)) == (["aq", "b"], ["y"])
    crossing = {value.name: value for value in third.graph.input}["aq"]
    assert crossing.type.tensor_type.elem_type == TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in crossing.type.tensor_type.shape.dim] == [
        "n",
        4,
    ]


def test_a_part_without_work_is_none() -> None:
    with pytest.raises(ValueError, match="without nodes"):
        split(ladder(), [2, 2], EXAMPLES)


def test_what_is_not_of_a_batch_cannot_cross() -> None:
    """A tensor without an axis for the batch would be wrong in batches of another size."""
    model = ladder()
    total = helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0)
    model.graph.node.insert(3, total)
    model.graph.node.append(helper.make_node("Add", ["z", "total"], ["z2"]))
    model.graph.output[1].name = "z2"
    with pytest.raises(ValueError, match=r"total .* no batch axis"):
        split(model, [4], EXAMPLES)
