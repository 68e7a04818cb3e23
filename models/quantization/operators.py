"""ONNX operators of the exported graphs in torch, and fake quantisation with learned ranges.

Fake quantisation rounds in the forward pass and passes gradients in the backward pass.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from models.runtime.errors import ModelError

TYPES: dict[int, torch.dtype] = {TensorProto.FLOAT: torch.float32, TensorProto.INT64: torch.int64}


class UnknownOperator(ModelError):
    """The simulation does not implement an operator of the graph."""


def run(node: NodeProto, given: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the node's outputs.

    Raises:
        UnknownOperator: its type, or an option of it, is not implemented.
    """
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type not in OPERATORS:
        raise UnknownOperator(f"{node.name}: {node.op_type} is not implemented in the simulation")
    try:
        found = OPERATORS[node.op_type](*given, **options)
    except (UnknownOperator, TypeError) as error:  # TypeError: an option that it does not take
        raise UnknownOperator(f"{node.name}: {error}") from error
    return list(found) if isinstance(found, tuple | list) else [found]


def _only(options: dict[str, Any], **known: Any) -> None:
    """Refuse options with other values than the ``known``: they would be ignored."""
    for name, value in known.items():
        if options.get(name, value) != value:
            raise UnknownOperator(f"{name} = {options[name]!r} is not implemented, only {value!r}")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    # torch pads both sides alike; ONNX lists all begins, then all ends
    half = options["pads"][: len(options["pads"]) // 2]
    _only(options, auto_pad=b"NOTSET", pads=half * 2)
    strides, dilations = options["strides"], options["dilations"]
    return F.conv3d(x, weight, bias, strides, half, dilations, options["group"])


def _convolve_back(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    sides = len(options["strides"])
    _only(options, auto_pad=b"NOTSET", pads=[0] * 2 * sides, dilations=[1] * sides, group=1,
          output_padding=[0] * sides)  # fmt: skip
    return F.conv_transpose3d(x, weight, bias, options["strides"])


def _resize(
    x: Tensor, _: None, scales: Tensor | None, sizes: Tensor | None = None, **options: Any
) -> Tensor:
    if sizes is None:
        assert scales is not None
        _only(options, mode=b"nearest")
        return F.interpolate(x, scale_factor=scales[2:].tolist(), mode="nearest")
    _only(options, mode=b"linear", coordinate_transformation_mode=b"half_pixel", antialias=0)
    return F.interpolate(x, sizes[2:].tolist(), mode="trilinear", align_corners=False)


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    _only(options, alpha=1.0, beta=1.0, transA=0)
    return F.linear(x, weight if options.get("transB") else weight.t(), bias)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    _only(options, axis=-1)
    return F.layer_norm(x, weight.shape, weight, bias, options["epsilon"])


def _reduced(
    by: Callable[..., Tensor], x: Tensor, axes: Tensor, keepdims: int = 1, **options: Any
) -> Tensor:
    _only(options, noop_with_empty_axes=0)
    return by(x, axes.tolist(), keepdim=bool(keepdims))


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    _only({} if steps is None else {"steps": steps.tolist()}, steps=[1] * len(starts))
    named = range(len(starts)) if axes is None else axes.tolist()
    index = [slice(None)] * x.ndim
    # as in torch, negative bounds count from the end and large ones are clipped
    for axis, start, end in zip(named, starts.tolist(), ends.tolist(), strict=True):
        index[axis] = slice(start, end)
    return x[tuple(index)]


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (index,)]


def _reshape(x: Tensor, shape: Tensor, **options: Any) -> Tensor:
    _only(options, allowzero=0)  # 0 keeps the side, -1 is inferred as in torch
    return x.reshape([side or x.shape[i] for i, side in enumerate(shape.tolist())])


def _cast(x: Tensor, to: int) -> Tensor:
    if to not in TYPES:
        raise UnknownOperator(f"cast to type {to} is not implemented")
    return x.to(TYPES[to])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Cast": _cast,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _convolve,
    "ConvTranspose": _convolve_back,
    "Div": lambda a, b: a / b if a.is_floating_point() else a // b,
    "Erf": torch.erf,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda x: x,
    "LayerNormalization": _normalise,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "ReduceMean": partial(_reduced, torch.mean),
    "ReduceSum": partial(_reduced, torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x, start=0: torch.tensor(x.shape[start:], dtype=torch.int64),
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Split": lambda x, sizes, axis=0: x.split(sizes.tolist(), axis),
    "Squeeze": lambda x, axes: x.squeeze(axes.tolist()),
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": lambda x, axes: reduce(torch.unsqueeze, sorted(axes.tolist()), x),
}
"""Every operator of the exported networks; called with a node's inputs and, by name, options."""


class _Rounded(torch.autograd.Function):
    """``scale * (clamp(round(x / scale) + zero, low, high) - zero)``; gradients to the first three.

    ``zero`` is rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        # the level of each value, clipped to the range
        steps, at = x / scale.to(x.dtype), zero.to(x.device, x.dtype).round()
        level = torch.clamp(steps.round(), low - at, high - at)
        ctx.save_for_backward(steps, level, scale)
        return level * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        steps, level, scale = ctx.saved_tensors
        # straight through inside the range, nothing to values that were clipped
        inside = (steps - level).abs_() <= 0.5
        # the scale gets the rounding error inside the range, the range's end beyond it
        lost = torch.where(inside, level - steps, level) * gradient
        to_scale = lost.float().sum_to_size(scale.shape)
        passed = gradient * inside
        # a higher zero point moves both ends of the range down
        to_zero = -((gradient - passed).float() * scale).sum() if ctx.needs_input_grad[2] else None
        return passed, to_scale, to_zero, None, None


_ZERO = torch.zeros(())


def rounded(x: Tensor, scale: Tensor, low: int, high: int, zero: Tensor = _ZERO) -> Tensor:
    """Round ``x`` to the levels ``low`` to ``high`` of ``scale``, which broadcasts against it.

    ``zero`` is the level of 0. Sources of the gradients: LSQ (Esser et al., arXiv:1902.08153), and
    LSQ+ (Bhalgat et al., arXiv:2004.09576) for that of the zero point.
    """
    apply: Callable[..., Tensor] = _Rounded.apply
    return apply(x, scale, zero, low, high)


class Rounding(nn.Module):
    """Rounds to the levels of an unsigned or signed integer with a learned, positive scale.

    The logarithm is learned, so that a step changes the scale by a share of itself. ``low`` and
    ``high`` are the type's bounds. The ``zero`` point is learned if ``learn_zero``, too, by shares
    of the type's range.
    """

    initial_zero: Tensor

    def __init__(
        self, scale: Tensor, low: int, high: int, zero: int = 0, *, learn_zero: bool = False
    ) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log_scale = nn.Parameter(scale.clamp(min=1e-12).log())
        # in the state: a file that was trained already has another zero point
        self.register_buffer("initial_zero", torch.tensor(float(zero)))
        self.zero_offset = nn.Parameter(torch.zeros(()), requires_grad=learn_zero)

    @property
    def scale(self) -> Tensor:
        """The difference of two levels."""
        return self.log_scale.exp()

    @property
    def zero(self) -> Tensor:
        """The level of 0, not rounded."""
        offset = self.zero_offset * (self.high - self.low)
        return (self.initial_zero + offset).clamp(self.low, self.high)

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x``; the shape stays."""
        return rounded(x, self.scale, self.low, self.high, self.zero)


def best_scale(weight: Tensor, high: int, axis: int = 0) -> Tensor:
    """Return the scale with the least mean square error for each channel along ``axis``.

    Tried are 40 shares of the channel's largest weight: with few bits it pays to clip outliers.
    """
    # a row for each channel; every scale rounds all rows, and each row takes its best
    rows = weight.movedim(axis, 0).flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    tried = [most * share / high for share in torch.linspace(0.4, 1.0, 40).tolist()]
    lost = torch.stack([(rounded(rows, s, -high - 1, high) - rows).square().sum(1) for s in tried])
    return torch.stack(tried)[lost.argmin(0), torch.arange(len(rows)), 0]
