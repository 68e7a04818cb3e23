"""A quantised graph in torch: the same nodes with the same rounding, and gradients through it.

It is made from the file that post-training quantisation wrote, so that what is rounded where is
the same by construction; what it learns is written back into that file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import nn

from models.compression import operators
from models.compression.graph import INPUT
from models.compression.rounding import Rounding, best_scale, rounded

Answer = Callable[..., Any]
LEVELS = {4: 7, 8: 127, 16: 32767}
"""The highest level of a weight of so many bits; sixteen are as good as exact."""


class Simulation(nn.Module):
    """``(n, 1, z, y, x)`` in [0, 1] to what the artifact answers for the voxels x 255.

    Args:
        model: an INT8 artifact in QDQ form.
        exact: the float weights by name, as the float export holds them.
        answer: makes the outputs one value, such as `models.networks.hybrid.Answers`.

    Attributes:
        bits: of a weight's levels by name, 8 where none are given; see `lower`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        exact: Mapping[str, np.ndarray],
        answer: Answer,
    ) -> None:
        super().__init__()
        self.model, self.answer = model, answer
        self.bits: dict[str, int] = {}
        self.exact = nn.ParameterDict()
        self.rounding = nn.ModuleDict()
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._makers = {out: node for node in model.graph.node for out in node.output}
        self._users = {node.input[2]: node for node in model.graph.node if node.op_type == "Conv"}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                self._round_activation(node)
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._constants:
                self._take_constant(node, exact)

    def weights(self) -> list[str]:
        """The names of the weights that are rounded, in the order of the graph."""
        return [weight_name(n) for n in self.model.graph.node if self._is_weight(n)]

    def forward(self, x: torch.Tensor) -> Any:
        """See the class."""
        values: dict[str, Any] = {INPUT: x, "": None}
        for node in self.model.graph.node:
            given = [values[n] if n in values else self._constant(n, x.device) for n in node.input]
            outputs = self._run(node, given)
            values.update(zip(node.output, outputs, strict=False))
        return self.answer(*(values[out.name] for out in self.model.graph.output))

    def _run(self, node: NodeProto, given: list[Any]) -> list[Any]:
        if node.op_type == "QuantizeLinear":
            return [self.rounding_of(node.input[1])(given[0])]
        if node.op_type != "DequantizeLinear":
            return operators.run(node, given)
        if node.input[0] not in self._constants:
            return [given[0]]  # rounded already; the input comes in [0, 1]
        name = weight_name(node)
        if parameter_name(name) not in self.exact:
            return [given[0].float().sub(given[2]).mul(given[1])]
        weight = self.exact[parameter_name(name)]
        if parameter_name(name) in self.rounding:
            return [self.rounding_of(name)(weight)]
        return [rounded(weight, self.bias_scale(name).detach(), -(2**31), 2**31 - 1)]

    def bias_scale(self, name: str) -> torch.Tensor:
        """What a level of that bias is worth, ``(channels,)``: as the products that it is added to.

        Kernels sum integers, so the file format asks for exactly this scale.
        """
        source, weight = (self._makers[n] for n in self._users[name].input[:2])
        scale = self.rounding_of(weight_name(weight)).scale.flatten()
        if source.input[0] == INPUT:
            return scale * float(self._constants[source.input[1]])
        return scale * self.rounding_of(source.input[1]).scale

    def rounding_of(self, name: str) -> Rounding:
        """How the weight of that name, or what has the scale of that name, is rounded."""
        found = self.rounding[parameter_name(name)]
        assert isinstance(found, Rounding)
        return found

    def _constant(self, name: str, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(np.array(self._constants[name])).to(device)

    def _is_weight(self, node: NodeProto) -> bool:
        return (
            node.op_type == "DequantizeLinear"
            and node.input[0] in self._constants
            and self._constants[node.input[0]].dtype == np.int8
        )

    def _round_activation(self, node: NodeProto) -> None:
        scale, zero = (self._constants[name] for name in node.input[1:3])
        bounds = np.iinfo(zero.dtype)
        self.rounding[parameter_name(node.input[1])] = Rounding(
            torch.tensor(scale), bounds.min - int(zero), bounds.max - int(zero)
        )

    def _take_constant(self, node: NodeProto, exact: Mapping[str, np.ndarray]) -> None:
        """Weights and biases become parameters."""
        name = weight_name(node)
        stored = self._constants[node.input[0]]
        if name not in exact or stored.dtype not in (np.int8, np.int32):
            return
        self.exact[parameter_name(name)] = nn.Parameter(torch.tensor(exact[name]))
        if stored.dtype == np.int8:
            shape = [-1 if i == axis_of(node) else 1 for i in range(stored.ndim)]
            scale = torch.tensor(self._constants[node.input[1]]).reshape(shape)
            self.rounding[parameter_name(name)] = Rounding(scale, -LEVELS[8] - 1, LEVELS[8])

    def lower(self, name: str, bits: int) -> None:
        """Rounds that weight to so many bits from now on, with the scales that lose least."""
        key, high = parameter_name(name), LEVELS[bits]
        weight, before = self.exact[key].detach(), self.rounding_of(name).scale
        axis = max(range(weight.ndim), key=lambda i: before.shape[i])
        scale = best_scale(weight, high, axis).reshape(before.shape)
        self.rounding[key] = Rounding(scale, -high - 1, high)
        self.bits[name] = bits


def weight_name(node: NodeProto) -> str:
    """The name that a quantised weight's float original has."""
    return str(node.input[0]).removesuffix("_quantized")


def layer_name(model: onnx.ModelProto, weight: str) -> str:
    """Where in the network the node that uses a weight stands, such as ``down4.1.first.0``."""
    output = f"{weight}_DequantizeLinear_Output"
    user = next(node for node in model.graph.node if output in node.input)
    parts = user.name.strip("/").split("/")[:-1]
    nested = zip(parts, [*parts[1:], ""], strict=True)
    return ".".join(part for part, deeper in nested if not deeper.startswith(part))


def axis_of(node: NodeProto) -> int:
    """Along which axis of the weight the scales of a `DequantizeLinear` run."""
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def exact_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A float model's constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def parameter_name(name: str) -> str:
    """A name that torch takes for a parameter's."""
    return name.replace(".", "|")
