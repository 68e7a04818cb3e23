"""Rewrites of an ONNX graph: the same numbers by operators for which engines have fast kernels."""

from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_RESIZED = {
    "mode": b"linear", "coordinate_transformation_mode": b"half_pixel", "antialias": 0,
    "exclude_outside": 0, "keep_aspect_ratio_policy": b"stretch",
}  # fmt: skip
"""Options of the resizing that `matrix_resize` replaces; all but the mode are the defaults."""


def rewritten(content: bytes) -> bytes:
    """Return an ONNX file as both engines run it; one with nothing to replace as it is."""
    if b"ConvTranspose" not in content and b"Resize" not in content:
        return content
    model = onnx.load_from_string(content)
    before = [node.op_type for node in model.graph.node]
    pointwise_upsampling(model)
    matrix_resize(model)
    changed = before != [node.op_type for node in model.graph.node]
    return model.SerializeToString() if changed else content


def pointwise_upsampling(model: ModelProto) -> None:
    """Replace transposed convolutions whose stride is their kernel by point-wise ones, in place.

    Each input voxel becomes a patch of its own, so the same numbers come from a point-wise
    convolution with a channel for each voxel of the patch.
    """
    if _operator_set(model) < 15:  # the first in which ``Shape`` takes a start
        return
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        known = all(name in stored for name in node.input[1:])
        fits = node.op_type == "ConvTranspose" and known and _is_patchwise(node)
        nodes += _pointwise(node, stored, model) if fits else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def matrix_resize(model: ModelProto) -> None:
    """Replace the linear resizing of volumes by matrix products, one along each axis, in place.

    Their sums are rounded otherwise: a value half-way between two levels of INT8 may become the
    other one, as it may between two engines. Volumes whose sides are free stay.
    """
    linear = [node for node in model.graph.node if _is_linear(node)]
    if not linear or _operator_set(model) < 12:  # the first with ``Einsum``
        return
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value.type.tensor_type for value in (*typed.input, *typed.value_info)}
    for node in linear:
        if sides := _sides(known, node.input[0], node.output[0]):
            node.CopyFrom(_products(node, sides, model))


def pointwise_products(content: bytes) -> bytes:
    """Return an ONNX file with products of tokens and quantised weights as convolutions.

    The numbers are the same. Without VNNI openvino's kernels for such products take three times as
    long as those for point-wise convolutions; with VNNI as long. Tokens are ``(n, tokens, c)``.
    """
    if not (b"MatMul" in content and b"uantize" in content):
        return content
    model = onnx.load_model_from_string(content)
    typed = onnx.shape_inference.infer_shapes(model).graph
    sides = {v.name: len(v.type.tensor_type.shape.dim) for v in (*typed.input, *typed.value_info)}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    known = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    # those with one scale, or one for each output
    made = {n.output[0]: n for n in known if all(a.i % 2 for a in n.attribute if a.name == "axis")}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        weights = made.get(node.input[1]) if node.op_type == "MatMul" else None
        table = stored.get(weights.input[0]) if weights else None
        if not weights or not table or len(table.dims) != 2 or sides.get(node.input[0]) != 3:
            nodes.append(node)
            continue
        # (c, out) to (out, c, 1), and the tokens to (n, c, tokens) and back
        name, out = f"{node.output[0]}_turned", node.output[0]
        turned = np.ascontiguousarray(numpy_helper.to_array(table).T[..., None])
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
        nodes += [
            helper.make_node("DequantizeLinear", [name, *weights.input[1:]], [f"{name}_w"], axis=0),
            helper.make_node("Transpose", node.input[:1], [f"{name}_in"], perm=[0, 2, 1]),
            helper.make_node("Conv", [f"{name}_in", f"{name}_w"], [f"{name}_out"], node.name),
            helper.make_node("Transpose", [f"{name}_out"], [out], perm=[0, 2, 1]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _operator_set(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _is_linear(node: NodeProto) -> bool:
    """Return whether it resizes linearly to given sizes."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Resize" and len(node.input) == 4 and "mode" in given
        and "axes" not in given and all(given.get(a, b) == b for a, b in _RESIZED.items())
    )  # fmt: skip


def _sides(known: Mapping[str, Any], *names: str) -> list[tuple[int, int]]:
    """Return z, y and x of float volumes ``(n, c, z, y, x)``, each before and after.

    Nothing where a side is free, or where n or c differ.
    """
    found = [known[name] for name in names if name in known]
    dims = [[d.dim_value for d in a.shape.dim] for a in found if a.elem_type == TensorProto.FLOAT]
    if len(dims) < 2 or not all(len(one) == 5 and all(one[1:]) for one in dims):
        return []
    before, after = dims
    return list(zip(before[2:], after[2:], strict=True)) if before[:2] == after[:2] else []


def _products(node: NodeProto, sides: Sequence[tuple[int, int]], model: ModelProto) -> NodeProto:
    name = node.name or node.output[0]
    weights = dict(zip((f"{name}_{axis}" for axis in "zyx"), starmap(_weights, sides), strict=True))
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    inputs, equation = [node.input[0], *reversed(weights)], "nczyx,Xx,Yy,Zz->ncZYX"
    return helper.make_node("Einsum", inputs, node.output, name, equation=equation)


def _weights(before: int, after: int) -> np.ndarray:
    """Return the weights ``(after, before)`` of linear interpolation between voxels' middles."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    # a hat of one voxel's width around each place
    hats = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(before)))
    return hats.astype(np.float32)


def _is_patchwise(node: NodeProto) -> bool:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        given.get("strides") == given.get("kernel_shape")
        and not any(given.get("pads", [])) and not any(given.get("output_padding", []))
        and set(given.get("dilations", [1])) == {1} and given.get("group", 1) == 1
        and "output_shape" not in given and len(given.get("strides", [])) == 3
    )  # fmt: skip


def _pointwise(
    node: NodeProto, stored: Mapping[str, np.ndarray], model: ModelProto
) -> list[NodeProto]:
    """Return nodes that compute ``(n, out kz ky kx, z, y, x)`` and put each patch in its place."""
    weight = stored[node.input[1]]  # (c, out, kz, ky, kx)
    inputs, outputs, *patch = weight.shape
    # each voxel of the patch is a channel: (out kz ky kx, c, 1, 1, 1)
    kernel = np.moveaxis(weight, 0, -1).reshape(-1, inputs, 1, 1, 1)
    name = node.name or node.output[0]
    known = {"": node.input[0], "out": node.output[0]}
    constants = {
        "kernel": np.ascontiguousarray(kernel),
        "apart": np.array([0, outputs, *patch]),
        "outputs": np.array([0, outputs]),
        "patch": np.array(patch),
    }
    if len(node.input) > 2:
        constants["bias"] = np.repeat(stored[node.input[2]], int(np.prod(patch)))
    model.graph.initializer.extend(
        numpy_helper.from_array(value, f"{name}_{part}") for part, value in constants.items()
    )

    def step(operator: str, given: list[str], gives: str, **options: Any) -> NodeProto:
        *names, made = (known.get(part, f"{name}_{part}") for part in (*given, gives))
        return helper.make_node(operator, names, [made], f"{made}_made", **options)

    bias = ["bias"] if "bias" in constants else []
    # the grid is read at run time, since a box has any size: channels are split into the patch's
    # axes, moved beside the grid's, and joined with them
    return [
        step("Shape", [""], "grid", start=2),
        step("Mul", ["grid", "patch"], "sides"),
        step("Concat", ["apart", "grid"], "split", axis=0),
        step("Concat", ["outputs", "sides"], "joined", axis=0),
        step("Conv", ["", "kernel", *bias], "patches", kernel_shape=[1, 1, 1]),
        step("Reshape", ["patches", "split"], "pieces"),
        step("Transpose", ["pieces"], "turned", perm=[0, 1, 5, 2, 6, 3, 7, 4]),
        step("Reshape", ["turned", "joined"], "out"),
    ]
