import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.export.split import Example, split

EXAMPLES: tuple[Example, Example] = (
    {"x": np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)},
    {"x": np.linspace(-2, 1, 8, dtype=np.float32).reshape(2, 4)},
)


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


def run(model: onnx.ModelProto, given: Example) -> dict[str, np.ndarray]:
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
    sides = crossing.type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["n", 4]


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
