"""What a simulation has learnt, written into the file that it was made from."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from models.compression.simulation import (
    LEVELS,
    Simulation,
    axis_of,
    parameter_name,
    weight_name,
)

INT4_OPSET, INT4_IR = 21, 10
"""The first versions of operators and of the format that know weights of four bits."""


def written(simulation: Simulation) -> onnx.ModelProto:
    """The QDQ file that computes what ``simulation`` does, up to the order of sums."""
    model = copy.deepcopy(simulation.model)
    store = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale = simulation.rounding_of(node.input[1]).scale
            _set(store, node.input[1], _array(scale))
        elif node.op_type == "DequantizeLinear" and node.input[0] in store:
            _write_constant(simulation, node, store)
    if any(tensor.data_type == TensorProto.INT4 for tensor in store.values()):
        _raise_versions(model)
    return model


def _write_constant(
    simulation: Simulation, node: onnx.NodeProto, store: dict[str, TensorProto]
) -> None:
    name = weight_name(node)
    key = parameter_name(name)
    if key not in simulation.exact:
        return
    weight = simulation.exact[key]
    if key not in simulation.rounding:
        scale = simulation.bias_scale(name)
        _set(store, node.input[1], _array(scale))
        _set(store, node.input[0], np.round(_array(weight / scale)).astype(np.int32))
        return
    rounding = simulation.rounding_of(name)
    level = _array((weight / rounding.scale).round().clamp(rounding.low, rounding.high))
    _set(store, node.input[1], _array(rounding.scale.flatten()))
    if rounding.high != LEVELS[4]:
        _set(store, node.input[0], level.astype(np.int8))
        return
    zeros = np.zeros(weight.shape[axis_of(node)], np.int8)
    for target, values in ((node.input[0], level.astype(np.int8)), (node.input[2], zeros)):
        store[target].CopyFrom(int4_tensor(target, values))


def int4_tensor(name: str, values: np.ndarray) -> TensorProto:
    """Integers from -8 to 7 as a tensor of four bits each, two to a byte, the lower half first."""
    nibbles = values.astype(np.int8).flatten().view(np.uint8) & 0xF
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed = (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, values.shape, packed, raw=True)


def _set(store: dict[str, TensorProto], name: str, values: np.ndarray) -> None:
    before = store[name]
    store[name].CopyFrom(numpy_helper.from_array(values.reshape(tuple(before.dims)), name))


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _raise_versions(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, INT4_OPSET)
    model.ir_version = max(model.ir_version, INT4_IR)
