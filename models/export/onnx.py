"""Exports a torch network to ONNX, and edits graphs: uint8 as input, float outputs."""

import copy
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from models.runtime.contract import INPUT, OUTPUTS

SCALE = ("unit_scale", "unit_zero")
"""The names of the constants that dequantise the input."""

_FREE_AXES = {
    "screening": {
        INPUT: {0: "n", 2: "z", 3: "y", 4: "x"},
        "maps": {0: "n", 2: "z4", 3: "y4", 4: "x4"},
    },
    "hybrid": {name: {0: "n"} for name in (INPUT, *OUTPUTS["hybrid"])},
}


def export_float(network: nn.Module, kind: str) -> onnx.ModelProto:
    """Export a network to ONNX with float input in [0, 1], the form that quantisation reads.

    ``kind`` is ``screening`` or ``hybrid``. Batch norms are folded into the convolutions.
    """
    network = copy.deepcopy(network).eval().cpu()
    for weight in network.parameters():
        weight.data = weight.data.contiguous()
    example = torch.rand(1, 1, *(64 if kind == "screening" else 48,) * 3)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # the tracing exporter is deprecated, and the only one that folds batch norm by itself
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=[*OUTPUTS[kind]],
            dynamic_axes=_FREE_AXES[kind],
            opset_version=18,
            dynamo=False,
        )
        return onnx.load(path)


def export_fp32(network: nn.Module, kind: str) -> onnx.ModelProto:
    """Export a network to ONNX as it is served: uint8 of the HU window in, float32 inside."""
    model = export_float(network, kind)
    _take_uint8(model.graph)
    return model


def _take_uint8(graph: GraphProto) -> None:
    """Declare the input as uint8; what reads it as float reads it dequantised: value / 255."""
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    for name, value in zip(SCALE, (np.float32(1 / 255), np.uint8(0)), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    inner = f"{INPUT}_unit"
    others = [node for node in graph.node if node.op_type != "DequantizeLinear"]
    readers = [(node, i) for node in others for i, name in enumerate(node.input) if name == INPUT]
    for node, index in readers:
        node.input[index] = inner
    if readers:
        node = helper.make_node("DequantizeLinear", [INPUT, *SCALE], [inner], "voxels_dequantize")
        graph.node.insert(0, node)


def as_served(model: ModelProto) -> ModelProto:
    """Return a quantised model as it is served, from the form that onnxruntime makes.

    The input stays uint8, sums take unrounded convolutions, and outputs are not rounded.
    """
    graph = model.graph
    # voxels are levels already: rounding them again would cost a pass over the whole box. Their
    # scale is 1/255, and not that of the calibration
    first = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == INPUT)
    graph.node.remove(first)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == first.output[0]:
            del node.input[:]
            node.input.extend([INPUT, *SCALE])
    _take_uint8(graph)
    _drop_rounding_before_sums(graph)
    # constants without a reader: onnx's checker rejects duplicate names
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    _give_float(graph)
    return model


def _drop_rounding_before_sums(graph: GraphProto) -> None:
    """Remove the rounding of a convolution's output before a sum; the sum is rounded.

    Some engines fuse convolution and sum and skip that rounding. Without it in the file all
    engines and the simulation compute the same. A rounding that is a ReLU too (its lowest level
    is zero) stays, and of two convolutions that are added one stays rounded.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for total in [node for node in graph.node if node.op_type == "Add"]:
        for index, name in enumerate(total.input):
            chain = _rounding_behind(name, makers)
            # a rounded tensor that others read too must stay
            if not chain or any(uses[node.output[0]] > 1 for node in chain):
                continue
            zero = numpy_helper.to_array(constants[chain[1].input[2]])
            # it cuts off what is below zero, which the sum would not do
            if zero == np.iinfo(zero.dtype).min:
                continue
            total.input[index] = chain[1].input[0]
            for node in chain:
                graph.node.remove(node)
            break


def _rounding_behind(name: str, makers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the two nodes that round a convolution's output to ``name``, the last first."""
    chain = []
    for kind in ("DequantizeLinear", "QuantizeLinear", "Conv"):
        if name not in makers or makers[name].op_type != kind:
            return []
        chain.append(makers[name])
        name = makers[name].input[0]
    return chain[:2]


def _give_float(graph: GraphProto) -> None:
    """Give outputs as the last layer computed them, not rounded to 256 levels."""
    makers = {out: node for node in graph.node for out in node.output}
    for output in graph.output:
        back = makers[output.name]
        if back.op_type != "DequantizeLinear" or back.input[0] not in makers:
            continue
        forth = makers[back.input[0]]
        graph.node.remove(back)
        raw = forth.input[0]
        # the last layer writes to the output's name; where others read it, a copy does
        if not any(raw in node.input for node in graph.node if node is not forth):
            graph.node.remove(forth)
            names = makers[raw].output
            names[list(names).index(raw)] = output.name
        else:
            graph.node.append(helper.make_node("Identity", [raw], [output.name]))
