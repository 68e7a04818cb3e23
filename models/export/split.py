"""Cuts an ONNX network into consecutive parts that together compute the same.

A part takes tensors of earlier parts by name and gives those that later parts or the outputs need,
so a skip connection goes around the parts between. Cheap nodes (constants, shapes,
`DequantizeLinear`) are repeated in each part that uses them, so the tensors of an INT8 network
cross as bytes.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

Array = npt.NDArray[Any]
Example = Mapping[str, Array]


def split(
    model: ModelProto, positions: Sequence[int], examples: tuple[Example, Example]
) -> list[ModelProto]:
    """Return the parts of ``model``, one more than there are ``positions``.

    Each position is the number of the first node of a part, in rising order. ``examples`` are
    inputs of two batch sizes, which give the shapes of the tensors between the parts.

    Raises:
        ValueError: a part would be empty, or a tensor without a batch axis crosses.
    """
    graph, cheap = model.graph, _cheap(model.graph)
    bounds = pairwise([0, *positions, len(graph.node)])
    parts = [[i for i in range(first, end) if i not in cheap] for first, end in bounds]
    if not all(parts):
        raise ValueError(f"cuts before the nodes {list(positions)} leave a part without nodes")
    crossing = sorted({name for part in parts for name in _taken(graph, part)})
    declared = _declare(model, crossing, examples)
    return [_extract(model, part, _given(graph, part, crossing), declared) for part in parts]


def crossing_at(graph: GraphProto, position: int) -> list[str]:
    """Return the tensors that pass from nodes before ``position`` to those from it on."""
    cheap, makers = _cheap(graph), _makers(graph)
    taken = _taken(graph, [i for i in range(position, len(graph.node)) if i not in cheap])
    return [name for name in taken if name in makers]


def _cheap(graph: GraphProto) -> set[int]:
    """Return the nodes that any part may repeat."""
    constant = {tensor.name for tensor in graph.initializer} | {""}
    found = set()
    for number, node in enumerate(graph.node):
        fixed = set(node.input) <= constant or node.op_type == "Shape"
        if fixed or node.op_type == "DequantizeLinear":
            found.add(number)
        if fixed:
            constant |= set(node.output)
    return found


def _with_cheap(graph: GraphProto, part: Sequence[int], outputs: Sequence[str] = ()) -> list[int]:
    """Return the part's nodes and the cheap ones that they, or ``outputs``, need, in order."""
    makers, cheap, numbers = _makers(graph), _cheap(graph), set(part)
    open_ = [name for number in part for name in graph.node[number].input] + list(outputs)
    while open_:
        number = makers.get(open_.pop())
        if number in cheap and number not in numbers:
            numbers.add(number)
            open_ += graph.node[number].input
    return sorted(numbers)


def _taken(graph: GraphProto, part: Sequence[int]) -> list[str]:
    """Return the tensors that a part uses and neither makes nor holds as a constant."""
    numbers = _with_cheap(graph, part)
    made = {name for number in numbers for name in graph.node[number].output}
    known = made | {tensor.name for tensor in graph.initializer} | {""}
    used = [name for number in numbers for name in graph.node[number].input]
    return [name for name in dict.fromkeys(used) if name not in known]


def _given(graph: GraphProto, part: Sequence[int], crossing: Sequence[str]) -> list[str]:
    """Return the tensors that a part makes for others: crossing ones and outputs."""
    wanted = [*crossing, *(output.name for output in graph.output)]
    makers, makes, cheap = _makers(graph), set(part), _cheap(graph)

    def mine(name: str) -> bool:
        number = makers.get(name)
        while number in cheap:  # an output that is only dequantised is made where its bytes are
            number = makers.get(graph.node[number].input[0])
        return number in makes

    return [name for name in dict.fromkeys(wanted) if mine(name)]


def _extract(
    model: ModelProto, part: Sequence[int], gives: Sequence[str], declared: Mapping[str, Any]
) -> ModelProto:
    graph = model.graph
    numbers = _with_cheap(graph, part, gives)
    nodes = [graph.node[number] for number in numbers]
    used = {name for node in nodes for name in node.input}
    held = {tensor.name: tensor for tensor in graph.initializer}  # the last of a name counts
    cut = helper.make_graph(
        nodes,
        graph.name,
        [declared[name] for name in _taken(graph, part)],
        [declared[name] for name in gives],
        [tensor for name, tensor in held.items() if name in used],
    )
    made = helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made)
    return made


def _declare(
    model: ModelProto, crossing: Sequence[str], examples: tuple[Example, Example]
) -> dict[str, ValueInfoProto]:
    """Return type and shape of each crossing tensor and of the outputs."""
    declared = {given.name: given for given in model.graph.input}
    outputs = [output.name for output in model.graph.output]
    names = [name for name in dict.fromkeys([*crossing, *outputs]) if name not in declared]
    first, second = (values(model, names, example) for example in examples)
    for name in names:
        one, two = first[name], second[name]
        if one.ndim == 0 or one.shape[0] == two.shape[0]:
            raise ValueError(f"{name} {one.shape} crosses a cut and has no batch axis")
        shape = [
            a if a == b else f"n{i}"
            for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True))
        ]
        kind = helper.np_dtype_to_tensor_dtype(one.dtype)
        declared[name] = helper.make_tensor_value_info(name, kind, ["n", *shape[1:]])
    return declared


def values(model: ModelProto, names: Sequence[str], example: Example) -> dict[str, Array]:
    """Return the named tensors as the whole network computes them."""
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in known)
    session = open_plain(shown, onnxruntime.SessionOptions())
    return dict(zip(names, session.run(list(names), dict(example)), strict=True))


def open_plain(model: ModelProto, options: Any) -> Any:
    """Open the network without fusion, so that every tensor is available."""
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _makers(graph: GraphProto) -> dict[str, int]:
    """Return the number of the node that makes each tensor."""
    return {name: number for number, node in enumerate(graph.node) for name in node.output}
