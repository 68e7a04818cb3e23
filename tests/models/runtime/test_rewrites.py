import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from models.runtime.artifacts import find
from models.runtime.rewrites import pointwise_products, rewritten
from tests.models.small_networks import answered, exported, pictures, quantized


def assert_same(new: bytes, content: bytes, atol: float, **given: np.ndarray) -> None:
    """Both files answer the same."""
    for found, wanted in zip(answered(new, **given), answered(content, **given), strict=True):
        np.testing.assert_allclose(found, wanted, atol=atol)


def transposed(stride: int, *, bias: bool) -> bytes:
    """A file of one transposed convolution, kernel 2, of two channels to five."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 5, 2, 2, 2)).astype(np.float32)
    tensors = [numpy_helper.from_array(weight, "w")]
    tensors += [numpy_helper.from_array(np.arange(5, dtype=np.float32), "b")] if bias else []
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[n, 2, z, y, x] x) => (float[n, 5, a, b, c] y) {{
            r = Relu (x)
            y = ConvTranspose <kernel_shape = [2, 2, 2], strides = {[stride] * 3}>
                (r, {", ".join(t.name for t in tensors)})
        }}""")
    model.graph.initializer.extend(tensors)
    return model.SerializeToString()


@pytest.mark.parametrize(("stride", "opset"), [(2, 13), (1, 17)])
def test_a_file_that_overlaps_or_is_older_stays(stride: int, opset: int) -> None:
    """The operators of version 13 have no shape with a start."""
    model = onnx.load_from_string(transposed(stride, bias=True))
    model.opset_import[0].version = opset
    assert rewritten(model.SerializeToString()) == model.SerializeToString()


def resized(sides: str = "5, 6, 7", mode: str = '"linear"', sizes: str = "8, 12, 5") -> bytes:
    """A file that resizes volumes of two channels as the hybrid does: n and c are asked of them."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        small (float[n, 2, {sides}] x) => (float[n, 2, a, b, c] y)
        <int64[3] volume = {{{sizes}}}, int64[1] none = {{0}}, int64[1] two = {{2}}> {{
            shape = Shape (x)
            kept = Slice (shape, none, two, none)
            sizes = Concat <axis = 0> (kept, volume)
            r = Resize <mode = {mode}> (x, , , sizes)
            y = Relu (r)
        }}""")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("operator", "content"),
    [
        *(("ConvTranspose", transposed(2, bias=bias)) for bias in (True, False)),
        *(("Resize", resized(sizes=sizes)) for sizes in ("8, 12, 5", "5, 6, 14", "1, 3, 21")),
    ],
    ids=["bias", "no bias", "both ways", "longer", "shorter and longer"],
)
def test_patches_and_resized_volumes_are_as_they_were(operator: str, content: bytes) -> None:
    new = rewritten(content)
    assert operator not in {n.op_type for n in onnx.load_from_string(new).graph.node}
    x = np.random.default_rng(1).standard_normal((3, 2, 5, 6, 7)).astype(np.float32)
    assert_same(new, content, 1e-5, x=x)


@pytest.mark.parametrize(
    "other",
    [{"mode": '"nearest"'}, {"mode": '"cubic"'}, {"sides": "z, 6, 7"},
     {"mode": '"linear", coordinate_transformation_mode = "align_corners"'},
     {"mode": '"linear", antialias = 1'}],
)  # fmt: skip
def test_another_resizing_stays(other: dict[str, str]) -> None:
    assert rewritten(resized(**other)) == resized(**other)


def test_products_of_tokens_with_quantised_weights_are_convolutions() -> None:
    content = quantized("hybrid")
    new = pointwise_products(content)
    before, after = (
        [node.op_type for node in onnx.load_from_string(one).graph.node] for one in (content, new)
    )
    products = after.count("Conv") - before.count("Conv")
    # three members of two layers each: four products of a layer, and the features of the CNN
    assert products == before.count("MatMul") - after.count("MatMul") == 3 * (2 * 4 + 1)
    assert_same(new, content, 1e-4, voxels=pictures(2))
    assert pointwise_products(exported("hybrid")) == exported("hybrid")


@pytest.mark.parametrize(
    ("axis", "operator"), [(1, "Conv"), (-1, "Conv"), (0, "MatMul"), (-2, "MatMul")]
)
def test_products_with_a_scale_for_each_input_stay(axis: int, operator: str) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[n, 3, 2] x) => (float[n, 3, 2] y)
        <float s = {{0.1}}, uint8 z = {{0}}, float[2] ws = {{1, 2}}, int8[2] wz = {{0, 0}},
         int8[2, 2] w = {{1, 2, 3, 4}}> {{
            xq = QuantizeLinear (x, s, z)
            xd = DequantizeLinear (xq, s, z)
            wd = DequantizeLinear <axis = {axis}> (w, ws, wz)
            y = MatMul (xd, wd)
        }}""")
    new = pointwise_products(model.SerializeToString())
    assert operator in [node.op_type for node in onnx.load_from_string(new).graph.node]
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 10
    assert_same(new, model.SerializeToString(), 1e-5, x=x)


@pytest.mark.long
def test_the_shipped_hybrid_answers_as_its_file() -> None:
    content = find("hybrid-fp32").content()
    new = rewritten(content)
    assert [n.op_type for n in onnx.load_from_string(new).graph.node].count("Einsum") == 1
    x = np.random.default_rng(2).integers(0, 256, (2, 1, 48, 48, 48), dtype=np.uint8)
    assert_same(new, content, 1e-4, voxels=x)
