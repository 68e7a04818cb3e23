"""Whether sums of 8-bit products of a file can exceed 16 bits: a proof from its weights.

x86 processors without VNNI add two products of u8 and s8 in 16 bits, which cuts off a sum above
32,767. The order of the sums is not known, so the two largest weights of a layer count.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, numpy_helper

MAX_INPUT, MAX_SUM = 255, 2**15 - 1
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear")
_MOVES = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def overflowing(content: bytes) -> str:
    """Return the first tensor of an ONNX file whose products can exceed 16 bits; empty if none can.

    Anything but QDQ nodes with constant weights proves nothing, and counts as one that can.
    """
    if not any(word in content for word in (b"uantize", b"QLinear", b"Integer")):
        return ""
    model = onnx.load_model_from_string(content)
    return next(_found(model.graph), "") or next((one.name for one in model.functions), "")


def _found(graph: GraphProto) -> Iterator[str]:
    constants = {one.name: one for one in graph.initializer}
    written = [node for node in graph.node if node.op_type == "Constant"]
    constants |= {n.output[0]: a.t for n in written for a in n.attribute if a.name == "value"}
    makers = {out: node for node in graph.node for out in node.output}

    def dequantizer(name: str) -> NodeProto | None:
        """Return the node that dequantised a factor, which may have been moved since."""
        node = makers.get(name)
        while node is not None and node.op_type in _MOVES:
            node = makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    for node in graph.node:
        given = node.input[:2] if node.op_type in _PRODUCTS else ()
        factors = [one for one in map(dequantizer, given) if one is not None]
        weights = [one.input[0] for one in factors if one.input[0] in constants]
        if len(factors) == 2 and not weights:
            yield node.output[0]  # the file holds the levels of neither
        for name in weights:
            levels = np.sort(numpy_helper.to_array(constants[name]).astype(int), axis=None)
            most = max(np.maximum(levels[-2:], 0).sum(), -np.minimum(levels[:2], 0).sum())
            if MAX_INPUT * most > MAX_SUM:
                yield name
        graphs = (a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)
        if node.op_type in _INTEGER or node.domain not in ("", "ai.onnx") or any(graphs):
            yield node.output[0]
