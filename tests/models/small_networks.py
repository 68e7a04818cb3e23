"""Small material for tests: untrained networks, pictures, and a task."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from models.export.onnx import export_float
from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork
from models.quantization.ptq import quantize
from models.training.data import Batch

SMALL_HYBRID = HybridSpec(
    reads=(24, 48), widths=(16, 32, 64), blocks=(1, 1, 1), channels=64, depth=2
)

TINY_HYBRID = HybridSpec(
    reads=(24, 32, 48), widths=(4, 8, 8), blocks=(1, 1, 1), channels=32, depth=1
)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "screening": ScreeningNetwork,
    "hybrid": lambda: HybridNetwork(
        HybridSpec(widths=(16, 32, 64), blocks=(1, 1, 1), channels=96, depth=2)
    ),
}


def settled(kind: str) -> nn.Module:
    """An untrained network that has seen pictures."""
    return copy.deepcopy(_settled(kind))


@cache
def _settled(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return shown(NETWORKS[kind](), 12)


@cache
def exported(kind: str) -> bytes:
    """The float export of `settled`."""
    return bytes(export_float(_settled(kind), kind).SerializeToString())


@cache
def quantized(kind: str) -> bytes:
    """The INT8 form of `exported`."""
    pieces = (pictures(4)[n : n + 1] for n in range(4))
    return bytes(quantize(onnx.load_from_string(exported(kind)), kind, pieces).SerializeToString())


def shown(network: nn.Module, passes: int) -> nn.Module:
    """The network after its batch norms have seen pictures."""
    network.train()
    with torch.no_grad():
        for _ in range(passes):
            network(unit(2))
    return network.eval()


def told(network: nn.Module, count: int) -> list[np.ndarray]:
    """What a network or a simulation answers for pictures."""
    with torch.inference_mode():
        out = network(unit(count))
    return [o.numpy() for o in (out if isinstance(out, tuple) else (out,))]


def answered(content: bytes, **given: np.ndarray) -> list[np.ndarray]:
    """What a file answers on the reference engine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return list(onnxruntime.InferenceSession(content, options).run(None, given))


def unit(count: int) -> torch.Tensor:
    """`pictures` in [0, 1]."""
    return torch.from_numpy(pictures(count)).float() / 255


def pictures(count: int) -> np.ndarray:
    """Smooth uint8 volumes ``(n, 1, 48, 48, 48)`` with bright blobs."""
    rng = np.random.default_rng(count)
    z, y, x = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    out = []
    for _ in range(count):
        grey = 40 + 10 * rng.standard_normal((48, 48, 48))
        for _ in range(4):
            a, b, c = rng.uniform(8, 40, 3)
            away = (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2
            grey += 150 * np.exp(-away / rng.uniform(8, 60))
        out.append(np.clip(grey, 0, 255).astype(np.uint8)[None])
    return np.stack(out)


def square_error(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of the network's output for ``x`` against ``y``."""
    return ((network(batch["x"]).float() - batch["y"]) ** 2).mean()


@dataclass
class SmallTask:
    """A task of a function that draws a batch and one that gives the loss."""

    network: nn.Module
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    drawn: int = 0

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            self.drawn += 1
            yield self.draw(generator)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(network, batch)}

    def refresh(self, network: nn.Module) -> None:
        """Nothing to learn from the network."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        return {"left": float(sum(torch.count_nonzero(p) for p in network.parameters()))}
