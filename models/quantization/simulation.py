"""A quantised graph in torch: the same nodes with the same rounding, and gradients through it.

It is made from the file of post-training quantisation and written back into that file, so both
round the same tensors.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.networks.hybrid import Answers
from models.quantization import operators
from models.quantization.operators import Rounding, best_scale, rounded
from models.runtime.contract import INPUT
from models.runtime.errors import UnfitArtifact
from models.training.warm_start import module_of

LEVELS = {4: (-8, 7), 8: (-64, 64), 16: (-32768, 32767)}
"""The lowest and highest level of a weight by its bits; 16 stands for no rounding.

Those of INT8 cannot overflow on any processor: see `models.runtime.overflow`.
"""

INT4_OPSET, INT4_IR = 21, 10
"""The first versions of operators and of the format that have weights of four bits."""


class Simulation(nn.Module):
    """``(n, 1, z, y, x)`` in [0, 1] to what the artifact answers for the voxels x 255.

    Args:
        model: an INT8 artifact in QDQ form.
        exact: the weights of its float export (`exact_weights`); if None, those that the file
            holds, which are rounded.

    Raises:
        UnfitArtifact: ``exact`` lacks a weight of ``model``: it is another network's.
    """

    def __init__(
        self, model: onnx.ModelProto, exact: Mapping[str, np.ndarray] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.exact = nn.ParameterDict()
        self.rounding = nn.ModuleDict()
        nodes = model.graph.node
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._makers = {out: node for node in nodes for out in node.output}
        self._users = {name: node for node in reversed(nodes) for name in node.input}
        self._dequantizers: dict[str, NodeProto] = {}  # of each weight and bias
        # every QuantizeLinear is an activation, every dequantised constant a weight or a bias
        for node in nodes:
            if node.op_type == "QuantizeLinear":
                scale, zero = (self._constants[name] for name in node.input[1:3])
                bounds = np.iinfo(zero.dtype)
                self.rounding[parameter_name(node.input[1])] = Rounding(
                    torch.tensor(scale), bounds.min, bounds.max, int(zero),
                    # a range that begins at 0 may stand for a ReLU, and stays
                    learn_zero=not zero == bounds.min == 0,
                )  # fmt: skip
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._constants:
                self._take_constant(node, exact)

    def _take_constant(self, node: NodeProto, exact: Mapping[str, np.ndarray] | None) -> None:
        """Make a parameter of a weight (int8) or bias (int32); other constants stay rounded."""
        name, (level, scale) = weight_name(node), (self._constants[n] for n in node.input[:2])
        if level.dtype not in (np.int8, np.int32):
            return
        if exact is None:
            # one scale for each channel along the axis, or one for all
            by_channel = scale.reshape(_along(axis_of(node) % level.ndim, level.ndim))
            value = level.astype(np.float32) * (by_channel if scale.ndim else scale)
        elif name in exact:
            value = exact[name]
        else:
            raise UnfitArtifact(f"{node.input[0]}: the float network has no weight of that name")
        self._dequantizers[name] = node
        self.exact[name] = nn.Parameter(torch.tensor(value))
        if level.dtype == np.int8:
            # a file of another maker may have levels to 127: here they have twice the step
            wide = np.abs(level.astype(int)).max(initial=0) > LEVELS[8][1]
            self._round_weight(name, torch.tensor(2 * scale if wide else scale), 8)

    def weights(self) -> list[str]:
        """Return the names of the rounded weights, in the order of the graph."""
        return [name for name in self._dequantizers if name in self.rounding]

    def layer_of(self, name: str) -> str:
        """Return the module that uses a weight, such as ``down4.1.first.0``."""
        return module_of(self._user(name))

    def forward(self, x: Tensor) -> Any:
        """See the class."""
        values: dict[str, Any] = {INPUT: x, "": None}
        # run the nodes in their order; constants are looked up where no node made the value
        for node in self.model.graph.node:
            for name in node.input:
                if name not in values:
                    values[name] = torch.tensor(self._constants[name], device=x.device)
            outputs = self._run(node, [values[name] for name in node.input])
            values.update(zip(node.output, outputs, strict=True))
        found = [values[out.name] for out in self.model.graph.output]
        return Answers(*found) if len(found) > 1 else found[0]

    def _run(self, node: NodeProto, given: list[Any]) -> list[Any]:
        # QuantizeLinear rounds and stays float; DequantizeLinear gives a weight or passes through
        if node.op_type == "QuantizeLinear":
            return [self.rounding_of(node.input[1])(given[0])]
        if node.op_type != "DequantizeLinear":
            return operators.run(node, given)
        if node.input[0] not in self._constants:
            return [given[0]]  # rounded already; the input comes in [0, 1]
        name = weight_name(node)
        if name not in self._dequantizers:
            return [given[0].float().sub(given[2]).mul(given[1])]
        weight = self.exact[name]
        if name in self.rounding:
            return [self.rounding[name](weight)]
        return [rounded(weight, self.bias_scale(name).detach(), -(2**31), 2**31 - 1)]

    def bias_scale(self, name: str) -> Tensor:
        """Return the step of that bias, ``(channels,)``: scale of the input times of the weight.

        Kernels sum integer products, so the file format demands exactly this scale.
        """
        # the nodes that dequantise the two factors
        source, weight = (self._makers[n] for n in self._user(name).input[:2])
        scale = self.rounding_of(weight_name(weight)).scale.flatten()
        if source.input[0] == INPUT:
            return scale * float(self._constants[source.input[1]])
        return scale * self.rounding_of(source.input[1]).scale

    def rounding_of(self, name: str) -> Rounding:
        """Return the rounding of that weight, or of the activation whose scale has that name."""
        found = self.rounding[parameter_name(name)]
        assert isinstance(found, Rounding)
        return found

    def lower(self, name: str, bits: int) -> None:
        """Round that weight to ``bits`` from now on, with the scales that lose least."""
        axis = axis_of(self._dequantizers[name])
        scale = best_scale(self.exact[name].detach(), LEVELS[bits][1], axis)
        self._round_weight(name, scale, bits)

    def _round_weight(self, name: str, scale: Tensor, bits: int) -> None:
        """Round a weight with one ``scale`` for each channel along its axis."""
        shape = _along(axis_of(self._dequantizers[name]), self.exact[name].ndim)
        self.rounding[name] = Rounding(scale.reshape(shape), *LEVELS[bits])

    def _user(self, name: str) -> NodeProto:
        """Return the node that uses a weight or a bias."""
        return self._users[self._dequantizers[name].output[0]]


def weight_name(node: NodeProto) -> str:
    """Return the name of the float original of a quantised weight, as `parameter_name` gives it."""
    return parameter_name(str(node.input[0]).removesuffix("_quantized"))


def axis_of(node: NodeProto) -> int:
    """Return the axis of the weight along which the scales of a `DequantizeLinear` run."""
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _along(axis: int, sides: int) -> list[int]:
    """Return the shape of scales along an axis, to broadcast against that number of sides."""
    return [-1 if i == axis else 1 for i in range(sides)]


def exact_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return a float model's constants by `parameter_name`."""
    return {parameter_name(t.name): numpy_helper.to_array(t) for t in model.graph.initializer}


def parameter_name(name: str) -> str:
    """Return the name as torch allows it for a parameter."""
    return name.replace(".", "|")


def to_onnx(simulation: Simulation) -> onnx.ModelProto:
    """Return the QDQ file that computes what ``simulation`` does, up to the order of sums."""
    model = copy.deepcopy(simulation.model)
    store = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            rounding = simulation.rounding_of(node.input[1])
            _set(store, node.input[1], _array(rounding.scale))
            kind = helper.tensor_dtype_to_np_dtype(store[node.input[2]].data_type)
            _set(store, node.input[2], _array(rounding.zero.round()).astype(kind))
        elif node.op_type == "DequantizeLinear" and weight_name(node) in simulation.exact:
            _write_constant(simulation, node, store)
    # weights of four bits exist from these versions on
    if any(tensor.data_type == TensorProto.INT4 for tensor in store.values()):
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, INT4_OPSET)
        model.ir_version = max(model.ir_version, INT4_IR)
    return model


def _write_constant(
    simulation: Simulation, node: onnx.NodeProto, store: dict[str, TensorProto]
) -> None:
    name = weight_name(node)
    weight = simulation.exact[name]
    # a bias: int32 levels at the scale of the products that it is added to
    if name not in simulation.rounding:
        scale = simulation.bias_scale(name)
        _set(store, node.input[1], _array(scale))
        _set(store, node.input[0], np.round(_array(weight / scale)).astype(np.int32))
        return
    # a weight: levels and scales, INT8 in place; INT4 changes the type, of its zero points too
    rounding = simulation.rounding_of(name)
    level = _array((weight / rounding.scale).round().clamp(rounding.low, rounding.high))
    _set(store, node.input[1], _array(rounding.scale.flatten()))
    kind = np.dtype(np.int8)
    if rounding.high == LEVELS[4][1]:
        kind = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
        _set(store, node.input[2], np.zeros(weight.shape[axis_of(node)], kind))
    _set(store, node.input[0], level.astype(kind))


def _set(store: dict[str, TensorProto], name: str, values: np.ndarray) -> None:
    before = store[name]
    store[name].CopyFrom(numpy_helper.from_array(values.reshape(tuple(before.dims)), name))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
