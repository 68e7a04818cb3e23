"""Rewrites of an ONNX graph: the same numbers by operators for which engines have fast kernels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

_RESIZED = {
    "mode": b"linear", "coordinate_transformation_mode": b"half_pixel", "antialias": 0,
    "exclude_outside": 0, "keep_aspect_ratio_policy": b"stretch",
}  # fmt: skip
"""Options of the resizing that `matrix_resize` replaces; all but the mode are the defaults."""


def pointwise_upsampling(content: bytes) -> bytes:
    """Replace transposed convolutions whose stride is their kernel by point-wise ones.

    Each input voxel becomes a patch of its own, so the same numbers come from a point-wise
    convolution with a channel for each voxel of the patch. Other files are returned as they are.
    """
    if b"ConvTranspose" not in content:
        return content
    model = onnx.load_from_string(content)
    if _operator_set(model) < 15:  # the first in which ``Shape`` takes a start
        return content
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        known = all(name in stored for name in node.input[1:])
        fits = node.op_type == "ConvTranspose" and known and _is_patchwise(node)
        nodes += _pointwise(node, stored, model) if fits else [node]
    if len(nodes) == len(model.graph.node):
        return content
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def matrix_resize(content: bytes) -> bytes:
    """Replace the linear resizing of volumes by matrix products, one along each axis.

    Their sums are rounded otherwise: a value half-way between two levels of INT8 may become the
    other one, as it may between two engines. Other files are returned as they are, and so are
    volumes whose sides are free.
    """
    if b"Resize" not in content:
        return content
    model = onnx.load_from_string(content)
    linear = [node for node in model.graph.node if _is_linear(node)]
    if not linear or _operator_set(model) < 12:  # the first with ``Einsum``
        return content
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value.type.tensor_type for value in (*typed.input, *typed.value_info)}
    found = [(node, _sides(known, node.input[0], node.output[0])) for node in linear]
    for node, sides in found:
        if sides:
            node.CopyFrom(_products(node, sides, model))
    return model.SerializeToString() if any(sides for _, sides in found) else content


def paired_rows(content: bytes) -> bytes:
    """Let the first convolution of an INT8 network write all rows of the second one's patches.

    Engines are slow where a convolution has one channel, or patches of several rows. The first one
    gets its channels once for each row, with zeros in their kernels; sums of integers stay the
    same. Files that do not begin with two convolutions of patches are returned as they are.
    """
    model = onnx.load_from_string(content) if b"QuantizeLinear" in content else ModelProto()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    names = _tensors_of_patches(convolutions, model.graph, stored)
    if not names:
        return content
    kernel, *others, after = names
    weight, folded = stored[kernel], np.moveaxis(stored[after], 3, 1)
    (_, _, deep, high, wide), rows = weight.shape, folded.shape[1]
    apart = np.einsum("rs,oizyx->roizsyx", np.eye(rows, dtype=weight.dtype), weight)
    new = {name: np.tile(stored[name], rows) for name in others}
    new[kernel] = apart.reshape(-1, 1, deep, rows * high, wide)
    new[after] = folded.reshape(len(folded), -1, folded.shape[3], 1, folded.shape[4])
    for tensor in model.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name], tensor.name))
    for node, height in zip(convolutions, (rows * high, 1), strict=True):
        for option in node.attribute:
            if option.name in ("kernel_shape", "strides"):
                option.ints[1] = height
    del model.graph.value_info[:]  # it states another shape between them
    return model.SerializeToString()


def _tensors_of_patches(
    convolutions: Sequence[NodeProto], graph: GraphProto, stored: Mapping[str, np.ndarray]
) -> list[str]:
    """Return the tensors that `paired_rows` changes, the two kernels first and last.

    None where the file does not fit.
    """
    if len(convolutions) < 2 or not all(map(_is_patchwise, convolutions)):
        return []
    first, second = convolutions
    made = {name: node for node in graph.node for name in node.output}
    given = [made.get(name, NodeProto()) for name in (*first.input, *second.input[:2])]
    axes = [option.i for node in given for option in node.attribute if option.name == "axis"]
    if [node.op_type for node in given] != ["DequantizeLinear"] * 5 or axes != [0, 0, 0]:
        return []
    _, kernel, bias, between, after = (list(node.input) for node in given)
    rounded, changed = made.get(between[0], first), [*kernel, *bias, after[0]]
    if rounded.op_type != "QuantizeLinear" or [first.output[0], *between[1:]] != [*rounded.input]:
        return []
    uses = Counter(name for node in graph.node for name in node.input)
    alone = (*changed, first.output[0], between[0], second.input[0])
    if any(uses[name] != 1 for name in alone) or not stored.keys() >= {*changed, *between[1:]}:
        return []
    weight, shifted = stored[kernel[0]], any(stored[name].any() for name in kernel[2:])
    # a scale for each channel, and one for all between the two
    sizes = [{stored[name].size for name in names} for names in (changed[1:-1], between[1:])]
    fits = weight.shape[1] == 1 and sizes == [{len(weight)}, {1}]
    return changed if fits and not shifted else []


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
