"""ONNX operators of the exported graphs in torch, and fake quantisation with learned ranges.

Fake quantisation rounds in the forward pass and passes gradients in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import NodeProto, TensorProto, helper
from torch import nn
from torch.nn import functional as F

from models.runtime.errors import ModelError

TYPES = {TensorProto.FLOAT: torch.float32, TensorProto.INT64: torch.int64}

Value = torch.Tensor | None
Operator = Callable[[Sequence[Any], dict[str, Any]], Any]


class UnknownOperator(ModelError):
    """The simulation does not implement an operator of the graph."""


def run(node: NodeProto, given: Sequence[Value]) -> list[torch.Tensor]:
    """Return the node's outputs.

    Raises:
        UnknownOperator: its type, or an option of it, is not implemented.
    """
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type not in OPERATORS:
        raise UnknownOperator(f"{node.name}: {node.op_type} is not implemented in the simulation")
    try:
        found = OPERATORS[node.op_type](given, options)
    except UnknownOperator as error:
        raise UnknownOperator(f"{node.name}: {error}") from error
    return list(found) if isinstance(found, tuple | list) else [found]


def _only(options: dict[str, Any], **known: Any) -> None:
    """Refuse options with other values than the ``known``: they would be ignored."""
    for name, value in known.items():
        if options.get(name, value) != value:
            raise UnknownOperator(f"{name} = {options[name]!r} is not implemented, only {value!r}")


def _convolve(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x, weight, *bias = given
    # torch pads both sides alike; ONNX lists all begins, then all ends
    pads = options["pads"]
    half = len(pads) // 2
    _only(options, auto_pad=b"NOTSET", pads=pads[:half] * 2)
    return F.conv3d(
        x, weight, bias[0] if bias else None, tuple(options["strides"]), tuple(pads[:half]),
        tuple(options["dilations"]), options["group"],
    )  # fmt: skip


def _convolve_back(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x, weight, *bias = given
    sides = len(options["strides"])
    _only(options, auto_pad=b"NOTSET", pads=[0] * 2 * sides, dilations=[1] * sides, group=1,
          output_padding=[0] * sides)  # fmt: skip
    return F.conv_transpose3d(x, weight, bias[0] if bias else None, tuple(options["strides"]))


def _resize(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    _only(options, mode=b"nearest")
    return F.interpolate(given[0], scale_factor=[float(s) for s in given[2][2:]], mode="nearest")


def _gemm(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x, weight, *bias = given
    _only(options, alpha=1.0, beta=1.0, transA=0)
    return F.linear(x, weight if options.get("transB") else weight.t(), *bias)


def _normalise(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x, weight, bias = given
    _only(options, axis=-1)
    return F.layer_norm(x, weight.shape, weight, bias, options["epsilon"])


def _slice(given: Sequence[Any], _: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    starts, ends = given[1:3]
    _only({"steps": given[4].tolist()} if len(given) > 4 else {}, steps=[1] * len(starts))
    axes = given[3].tolist() if len(given) > 3 else range(len(starts))
    bounds = zip(axes, starts.tolist(), ends.tolist(), strict=True)
    for axis, start, end in bounds:  # negative bounds count from the end, large ones are clipped
        size = x.shape[axis]
        first, last = (min(n + size if n < 0 else n, size) for n in (start, end))
        x = x.narrow(axis, first, last - first)
    return x


def _gather(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    index: torch.Tensor = given[1]
    axis = options.get("axis", 0) % x.ndim
    # torch gathers along a flat index; the index's own shape comes back afterwards
    picked = x.index_select(axis, index.reshape(-1).long() % x.shape[axis])
    return picked.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def _reshape(given: Sequence[Any], _: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    shape: torch.Tensor = given[1]
    # 0 keeps the side, -1 is inferred as in torch
    sides = [x.shape[i] if side == 0 else side for i, side in enumerate(shape.tolist())]
    return x.reshape(sides)


def _squeeze(given: Sequence[Any], _: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    axes: torch.Tensor = given[1]
    return x.squeeze(tuple(int(a) for a in axes))


def _unsqueeze(given: Sequence[Any], _: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    axes: torch.Tensor = given[1]
    for axis in sorted(int(a) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _shape(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(given[0].shape[options.get("start", 0) :], dtype=torch.int64)


def _expand(given: Sequence[Any], _: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    shape: torch.Tensor = given[1]
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _cast(given: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    x: torch.Tensor = given[0]
    if options["to"] not in TYPES:
        raise UnknownOperator(f"cast to type {options['to']} is not implemented")
    return x.to(TYPES[options["to"]])


OPERATORS: dict[str, Operator] = {
    "Add": lambda g, _: g[0] + g[1],
    "Cast": _cast,
    "Concat": lambda g, o: torch.cat(list(g), o["axis"]),
    "Conv": _convolve,
    "ConvTranspose": _convolve_back,
    "Div": lambda g, _: g[0] / g[1] if g[0].is_floating_point() else g[0] // g[1],
    "Equal": lambda g, _: g[0] == g[1],
    "Erf": lambda g, _: torch.erf(g[0]),
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda g, _: g[0],
    "LayerNormalization": _normalise,
    "MatMul": lambda g, _: g[0] @ g[1],
    "Mul": lambda g, _: g[0] * g[1],
    "Pow": lambda g, _: g[0] ** g[1],
    "Relu": lambda g, _: torch.relu(g[0]),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": lambda g, o: torch.softmax(g[0], o["axis"]),
    "Split": lambda g, o: g[0].split(g[1].tolist(), o.get("axis", 0)),
    "Squeeze": _squeeze,
    "Transpose": lambda g, o: g[0].permute(o["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda g, _: torch.where(g[0], g[1], g[2]),
}
"""Every operator of the exported networks."""


class _Rounded(torch.autograd.Function):
    """``scale * clamp(round(x / scale), low, high)``; gradients to ``x`` and to ``scale``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        # the level of each value, clipped to the range
        steps = x / scale.to(x.dtype)
        level = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, level, scale)
        return level * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        steps, level, scale = ctx.saved_tensors
        # straight through inside the range, nothing to values that were clipped
        inside = (steps - level).abs_() <= 0.5
        # the scale gets the rounding error inside the range, the range's end beyond it
        lost = torch.where(inside, level - steps, level) * gradient
        to_scale = lost.float().sum_to_size(scale.shape)
        return gradient * inside, to_scale, None, None


def rounded(x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Round ``x`` to the levels ``low`` to ``high`` of ``scale``, which broadcasts against it.

    Source of the gradients: LSQ (Esser et al., arXiv:1902.08153).
    """
    apply: Callable[..., torch.Tensor] = _Rounded.apply
    return apply(x, scale, low, high)


class Rounding(nn.Module):
    """Rounds to the levels of an unsigned or signed integer with a learned, positive scale.

    The logarithm is learned, so that a step changes the scale by a share of itself. ``low`` and
    ``high`` are the type's bounds less the zero point.
    """

    def __init__(self, scale: torch.Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log_scale = nn.Parameter(scale.clamp(min=1e-12).log())

    @property
    def scale(self) -> torch.Tensor:
        """The difference of two levels."""
        return self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round ``x``; the shape stays."""
        return rounded(x, self.scale, self.low, self.high)


def best_scale(weight: torch.Tensor, high: int, axis: int = 0) -> torch.Tensor:
    """Return the scale with the least mean square error for each channel along ``axis``.

    Tried are 40 shares of the channel's largest weight: with few bits it pays to clip outliers.
    """
    # a row for each channel; every scale rounds all rows, and each row takes its best
    rows = weight.movedim(axis, 0).flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    tried = [most * share / high for share in torch.linspace(0.4, 1.0, 40).tolist()]
    lost = torch.stack([(rounded(rows, s, -high - 1, high) - rows).square().sum(1) for s in tried])
    return torch.stack(tried)[lost.argmin(0), torch.arange(len(rows)), 0]
