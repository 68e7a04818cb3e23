"""Recovers a network's weights from its float artifact, so that training can start from it.

The export folded each batch norm into its convolution. Here the convolution keeps the product and
the batch norm adds the bias: the same network. Before it is trained, `settle_norms` gives the batch
norms statistics.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import nn

from models.runtime.errors import UnfitArtifact

Weights = dict[str, torch.Tensor]


def weights_of_artifact(path: Path) -> Weights:
    """Return the state of the network that ``path``, a float artifact, was exported from.

    Raises:
        UnfitArtifact: it is not a float export of a network of `models.networks`.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common class
        raise UnfitArtifact(f"{path}: not an ONNX file: {error}") from error
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise UnfitArtifact(f"{path}: quantised, expected a float artifact")
    for node in model.graph.node:  # equal tensors are stored once
        if node.op_type == "Identity" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    weights: Weights = {
        name: _tensor(value) for name, value in stored.items() if name.endswith(".place")
    }
    for node in model.graph.node:
        held = [stored[n] for n in node.input if n in stored and not n.endswith(".place")]
        # a folded weight lost the name of its module
        folded = any(name.startswith("onnx::") for name in node.input[1:2])
        weights |= _weights_of(node, held, folded=folded)
    if "head.weight" in weights:  # an artifact lacks the map that only training has
        features = weights["head.weight"].shape[1]
        weights["share.weight"] = torch.zeros(1, features, 1, 1, 1)
        weights["share.bias"] = torch.full((1,), -4.0)
    return weights


def settle_norms(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Give every batch norm the statistics of its inputs, without changing what it computes.

    Filters are scaled to the norm of fresh ones, which batch norm undoes, so that a learning rate
    has its usual effect. ``batches`` are the network's inputs ``(n, 1, z, y, x)``.
    """
    # hooks see the input of every norm while the network reads the batches as it is
    sums: dict[nn.Module, torch.Tensor] = {}  # count, sums and squares for each channel

    def add(norm: nn.Module, given: tuple[torch.Tensor]) -> None:
        x = given[0].double()
        moments = [torch.ones_like(x), x, x.square()]
        sums[norm] = sums.get(norm, 0) + torch.stack([one.sum((0, 2, 3, 4)) for one in moments])

    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm3d)]
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        with torch.inference_mode():
            for batch in batches:
                network.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for part in network.modules():
        for first, second in pairwise(part.children() if isinstance(part, nn.Sequential) else ()):
            if isinstance(first, nn.Conv3d) and isinstance(second, nn.BatchNorm3d):
                count, total, squares = sums[second]
                _settle(first, second, total / count, squares / count)


@torch.no_grad()
def _settle(
    convolution: nn.Conv3d, norm: nn.BatchNorm3d, mean: torch.Tensor, square: torch.Tensor
) -> None:
    variance = square - mean.square()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # what the norm does to its input now: x times slope plus shift. The new weight and bias, with
    # the statistics just measured, must do the same
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - slope * norm.running_mean
    # scale each filter to the norm of uniform weights within 1 / sqrt(fan_in)
    fan_in = convolution.weight[0].numel()
    usual = fan_in**0.5 * (3 * fan_in) ** -0.5
    scale = usual / convolution.weight.flatten(1).norm(dim=1).clamp_min(1e-6)
    mean, variance = (mean * scale).float(), (variance * scale.square()).float()
    convolution.weight *= scale[:, None, None, None, None]
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(slope / scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + slope / scale * mean)


def _weights_of(node: NodeProto, held: list[np.ndarray], *, folded: bool) -> Weights:
    """Return the weights of the module that a node was exported from."""
    name = module_of(node)
    if not held or not name:
        return {}
    if node.op_type == "Conv" and folded:
        return _folded(name, *held)
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "LayerNormalization"):
        names = (f"{name}.weight", f"{name}.bias")
        return {key: _tensor(value) for key, value in zip(names, held, strict=True)}
    if node.op_type == "MatMul":
        return {f"{name}.weight": _tensor(held[0].T)}
    return {f"{name}.bias": _tensor(held[0])} if node.op_type == "Add" else {}


def _folded(name: str, weight: np.ndarray, bias: np.ndarray) -> Weights:
    """Split a folded convolution into convolution and batch norm."""
    *parents, number = name.split(".")
    norm = ".".join([*parents, str(int(number) + 1)])
    channels = len(bias)
    return {
        f"{name}.weight": _tensor(weight),
        f"{norm}.weight": torch.ones(channels),
        f"{norm}.bias": _tensor(bias),
        f"{norm}.running_mean": torch.zeros(channels),
        f"{norm}.running_var": torch.full((channels,), 1 - 1e-5),  # 1 with torch's epsilon
        f"{norm}.num_batches_tracked": torch.tensor(0),
    }


def module_of(node: NodeProto) -> str:
    """Return the module that the node was exported from: ``/a/a.1/b/b.0/Conv`` is ``a.1.b.0``."""
    names: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if names and part.startswith(f"{names[-1]}."):
            names.pop()
        names.append(part)
    return ".".join(names)


def _tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value.copy())
