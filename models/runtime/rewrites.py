"""Rewrites of an ONNX graph: the same numbers by operators for which engines have fast kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper


def pointwise_upsampling(content: bytes) -> bytes:
    """Replace transposed convolutions whose stride is their kernel by point-wise ones.

    Each input voxel becomes a patch of its own, so the same numbers come from a point-wise
    convolution with a channel for each voxel of the patch. Other files are returned as they are.
    """
    if b"ConvTranspose" not in content:
        return content
    model = onnx.load_from_string(content)
    # from operator set 15 on ``Shape`` takes a start
    if not any(o.domain in ("", "ai.onnx") and o.version >= 15 for o in model.opset_import):
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
