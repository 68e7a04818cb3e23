"""Ways to train the hybrid network in less memory, each put onto a network that is there.

- ``checkpointing``: a block keeps its input only; what is inside is computed again on the way back
  (Chen et al., arXiv:1604.06174).
- ``recomputation``: convolutions and matrix products are kept, what is cheap is computed again:
  norms, ReLU, GELU, soft-max, sums (selective recomputation, Korthikanti et al., arXiv:2205.05198).
- ``bf16``: the pass forward under autocast; weights and optimiser stay float32.
- ``sharing``: one encoder layer's weights for all layers (ALBERT, Lan et al., arXiv:1909.11942).
- ``buffers``: input and gradients live in buffers that are made once and used again.
- ``allocator``: the C library keeps freed memory for the next tensor; set for a whole process.

What is computed again meets its batch norms twice, so their running statistics move twice in a
step; losses and gradients are those of the batch and stay what they were.

Measures training steps of the hybrid in this process: `python -m models.training.memory`.

A process of its own for each measurement: what another left in the allocator would count too.
The result is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from models.networks.blocks import Residual
from models.networks.hybrid import Answers, EncoderLayer, HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork
from models.training.data import Batch
from models.training.targets import hybrid_loss

COSTLY = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
]
"""What ``recomputation`` keeps the results of."""

STEMS = ("fine2.0", "fine4", "join4")
"""Blocks that are neither `Residual` nor `EncoderLayer`."""


def checkpoint_blocks(network: HybridNetwork) -> None:
    """Every trained block keeps its input and nothing else."""
    _wrap(network, checkpoint)


def recompute_cheap(network: HybridNetwork) -> None:
    """Every trained block keeps its input and what `COSTLY` operators gave."""
    contexts = partial(create_selective_checkpoint_contexts, COSTLY)
    _wrap(network, partial(checkpoint, context_fn=contexts))


def share_encoder(network: HybridNetwork) -> None:
    """All encoder layers become the first one."""
    network.encoder = nn.Sequential(*[network.encoder[0]] * len(network.encoder))


def blocks(network: HybridNetwork) -> list[nn.Module]:
    """The blocks that are trained, each once."""
    return [
        module
        for name, module in network.named_modules()
        if (isinstance(module, Residual | EncoderLayer) or name in STEMS)
        and any(weight.requires_grad for weight in module.parameters())
    ]


def _wrap(network: HybridNetwork, through: Callable[..., Any]) -> None:
    for block in blocks(network):
        block.forward = partial(through, block.forward, use_reentrant=False)


class GradientBuffer:
    """One buffer that the gradients of all trained weights are views of."""

    def __init__(self, network: nn.Module) -> None:
        self._weights = [p for p in network.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self._weights)
        self._flat = torch.zeros(total, device=self._weights[0].device)

    def clear(self) -> None:
        """Zeroes the buffer; the gradients are views of it afterwards, wherever they were."""
        self._flat.zero_()
        at = 0
        for weight in self._weights:
            weight.grad = self._flat[at : at + weight.numel()].view_as(weight)
            at += weight.numel()


class InputBuffer:
    """One buffer for the network's input, filled anew for every batch."""

    def __init__(self, like: torch.Tensor) -> None:
        self._unit = torch.empty(like.shape, device=like.device)

    def fill(self, voxels: torch.Tensor) -> torch.Tensor:
        """``voxels`` uint8 as float in [0, 1], of the shape that the buffer was made for."""
        return self._unit.copy_(voxels).div_(255)


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

CLEAR_PEAK = "5"
"""What makes the kernel forget a process's high-water mark (proc(5))."""


def make_network(savings: Collection[str], spec: HybridSpec) -> HybridNetwork:
    """The hybrid as it is trained, its known stem taken over, with those savings."""
    torch.manual_seed(0)
    network = HybridNetwork(spec)
    network.start_from(ScreeningNetwork(spec.known).state_dict())
    if "sharing" in savings:
        share_encoder(network)
    if "checkpointing" in savings:
        checkpoint_blocks(network)
    if "recomputation" in savings:
        recompute_cheap(network)
    return network.train()


def make_batch(size: int, side: int) -> Batch:
    """What `hybrid_loss` asks for, drawn at random: memory and time do not depend on it."""
    draw = torch.Generator().manual_seed(0)
    box = (size, 1, side, side, side)
    return {
        "voxels": torch.randint(0, 256, box, generator=draw, dtype=torch.uint8),
        "nodule": (torch.arange(size) % 2).float(),
        "log_diameter": 1 + 2 * torch.rand(size, generator=draw),
        "malignancy": torch.rand(size, generator=draw),
        "texture": torch.arange(size) % 3,
        "mask": (torch.rand(box, generator=draw) < 0.1).float(),
    }


class Trainer:
    """One network, its optimiser, and its buffers if it has them."""

    def __init__(
        self, savings: Collection[str], size: int, spec: HybridSpec, device: torch.device
    ) -> None:
        self.network = make_network(savings, spec).to(device)
        batch = make_batch(size, spec.side)
        self.batch = {name: value.to(device) for name, value in batch.items()}
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        pooled = "buffers" in savings
        self._gradients = GradientBuffer(self.network) if pooled else None
        self._input = InputBuffer(self.batch["voxels"]) if pooled else None
        self._low = "bf16" in savings

    def step(self) -> float:
        """One training step; its loss."""
        # cached casts of shared weights would be missing when a forward pass is done again
        low = torch.autocast(self.batch["voxels"].device.type, torch.bfloat16, cache_enabled=False)
        with low if self._low else nullcontext():
            voxels = self.batch["voxels"]
            unit = self._input.fill(voxels) if self._input else voxels.float() / 255
            answers = self.network(unit)
        terms = hybrid_loss(Answers(*(out.float() for out in answers)), self.batch)
        loss = torch.stack(list(terms.values())).sum()
        if self._gradients:
            self._gradients.clear()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        return float(loss.detach())


def measure(
    savings: Collection[str],
    size: int,
    steps: int,
    *,
    spec: HybridSpec | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Peak memory of ``steps`` steps beyond what the built network takes, their times and losses.

    The network is the shipped one unless ``spec`` says another.

    ``tensors`` is the peak of what tensors hold during one further step, weights and optimiser
    included: of the allocator's calls, without what the libraries keep for themselves.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(savings, size, spec or HybridSpec(), device)
    before = _start_peak(device)
    took, losses = [], []
    for _ in range(steps):
        began = clock()
        losses.append(trainer.step())
        took.append(clock() - began)
    return {
        "peak_bytes": _peak(device) - before,
        "tensor_bytes": _tensor_peak(trainer, device),
        "took_s": took,
        "losses": losses,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "device": device.type,
    }


def _start_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    CLEAR.write_text(CLEAR_PEAK)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    line = next(li for li in STATUS.read_text().splitlines() if li.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _tensor_peak(trainer: Trainer, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        trainer.step()
        return torch.cuda.max_memory_allocated(device)
    held = _held(trainer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainer.step()
    now = most = 0
    events = seen.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return held + most


def _held(trainer: Trainer) -> int:
    """What weights, gradients, optimiser and batch hold between two steps."""
    weights = [*trainer.network.parameters(), *trainer.network.buffers()]
    states = [v for state in trainer.optimizer.state.values() for v in state.values()]
    slopes = [w.grad for w in weights if w.grad is not None]
    held = [*weights, *states, *slopes, *trainer.batch.values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))


def main() -> None:
    """``SAVING+SAVING BATCH STEPS`` as arguments; ``-`` for no saving."""
    savings, size, steps = sys.argv[1:]
    print(json.dumps(measure(savings.split("+"), int(size), int(steps))))


if __name__ == "__main__":
    main()
