"""How many multiply-adds an artifact takes for one region, counted node by node."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer
from rich.table import Table

from evaluation.options import Json
from evaluation.show import show
from models.runtime.artifacts import Artifact, find

SIDE = 48
"""Voxels along each side of the region that both networks are counted for."""


def multiply_adds(artifact: Artifact, side: int = SIDE) -> int:
    """Those of one ``side``^3 region: convolutions and products, from the shapes that occur."""
    model = onnx.load_model_from_string(artifact.stored())
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in _COUNTED]
    shapes = weights | _shapes(model, nodes, side)
    return sum(_COUNTED[node.op_type](node, shapes) for node in nodes)


def _shapes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], side: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of what goes into and out of the nodes, by running the model once."""
    given = {tensor.name for tensor in model.graph.initializer}
    names = {name for n in nodes for name in (*n.input, *n.output) if name not in given}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    voxels = np.zeros((1, 1, side, side, side), np.uint8)
    found = session.run(None, {session.get_inputs()[0].name: voxels})
    return {name: out.shape for name, out in zip(sorted(names), found, strict=True)}


def _convolution(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Each output value is a sum over the kernel and the input channels of its group."""
    return int(np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[1]][1:]))


def _back(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Each input value goes to a kernel's worth of output values of every channel."""
    return int(np.prod(shapes[node.input[0]]) * np.prod(shapes[node.input[1]][1:]))


def _product(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    return int(np.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1])


_COUNTED = {"Conv": _convolution, "ConvTranspose": _back, "MatMul": _product, "Gemm": _product}


def as_json(small: str, large: str) -> dict[str, Any]:
    """Both counts, and what the small one saves."""
    counts = {name: multiply_adds(find(name)) for name in (small, large)}
    return {
        "region": [SIDE] * 3,
        "small": {"artifact": small, "multiply_adds": counts[small]},
        "large": {"artifact": large, "multiply_adds": counts[large]},
        "saved": 1 - counts[small] / counts[large],
    }


def cost_command(
    small: Annotated[str, typer.Option(help="The edge's artifact.")] = "screening-fp32",
    large: Annotated[str, typer.Option(help="The cloud's artifact.")] = "hybrid-fp32",
    as_json_: Json = False,
) -> None:
    """Multiply-adds of both networks for one region, and what the edge's saves."""
    result = as_json(small, large)
    table = Table("artifact", "multiply-adds", title=f"one region of {SIDE}^3 voxels")
    for one in (result["small"], result["large"]):
        table.add_row(one["artifact"], f"{one['multiply_adds'] / 1e9:.3f} G")
    show(result, as_json_, table, f"saved: {result['saved']:.1%}")
