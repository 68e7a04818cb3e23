"""Methods to train the hybrid network in less memory, and their measurement in this process.

`python -m evaluation.timing.training_memory` measures one combination and prints a line of JSON.
Each needs a process of its own: the allocator keeps memory of an earlier one.

- ``checkpointing``: a block keeps its input only and is computed again in the backward pass
  (Chen et al., arXiv:1604.06174).
- ``recomputation``: convolutions and matrix products are kept, cheap operators are computed again
  (selective recomputation, Korthikanti et al., arXiv:2205.05198).
- ``bf16``: the forward pass under autocast; weights and optimiser stay float32.
- ``sharing``: one encoder layer's weights for all layers (ALBERT, Lan et al., arXiv:1909.11942).
- ``buffers``: input and gradients live in buffers that are reused.
- ``allocator``: the C library keeps freed memory for the next tensor; set for a whole process.

Batch norms that are computed again update their running statistics twice in a step; losses and
gradients do not change.
"""

import json
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from models.networks.hybrid import Answers, EncoderLayer, HybridNetwork, HybridSpec
from models.networks.screening import Residual
from models.training.data import Batch
from models.training.hybrid import hybrid_loss

COSTLY = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
]
"""The operators whose results ``recomputation`` keeps."""

STEMS = ("down2.0", "down4.0", "down8.0")
"""Blocks of a member that are neither `Residual` nor `EncoderLayer`."""


def blocks(network: HybridNetwork) -> list[nn.Module]:
    """Return the blocks, each once."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, Residual | EncoderLayer) or name.endswith(STEMS)
    ]


def pool_gradients(network: nn.Module) -> None:
    """Make the gradients of all trained weights views of one buffer of zeros."""
    weights = [p for p in network.parameters() if p.requires_grad]
    sizes = [p.numel() for p in weights]
    # one allocation for the whole run; without it each step allocates every gradient again
    flat = torch.zeros(sum(sizes), device=weights[0].device)
    for weight, part in zip(weights, flat.split(sizes), strict=True):
        weight.grad = part.view_as(weight)


def make_network(savings: Collection[str], spec: HybridSpec) -> HybridNetwork:
    """Return the hybrid in training mode with those savings."""
    torch.manual_seed(0)
    network = HybridNetwork(spec)
    if "sharing" in savings:
        for member in network.listed():
            # the same module several times: its weights exist once, its activations each time
            member.encoder = nn.Sequential(*[member.encoder[0]] * len(member.encoder))
    if "checkpointing" in savings or "recomputation" in savings:
        kept = partial(create_selective_checkpoint_contexts, COSTLY)
        options: dict[str, Any] = {"context_fn": kept} if "recomputation" in savings else {}
        for block in blocks(network):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)
    return network.train()


def make_batch(size: int, side: int) -> Batch:
    """Return a random batch for `hybrid_loss`; memory and time do not depend on its values."""
    draw = torch.Generator().manual_seed(0)
    box = (size, 1, side, side, side)
    return {
        "voxels": torch.randint(0, 256, box, generator=draw, dtype=torch.uint8),
        "nodule": (torch.arange(size) % 2).float(),
        "sized": (torch.arange(size) % 2).float(),
        "outlined": (torch.arange(size) % 2).float(),
        "log_diameter": 1 + 2 * torch.rand(size, generator=draw),
        "malignancy": torch.rand(size, generator=draw),
        "texture": torch.arange(size) % 3,
        "mask": (torch.rand(box, generator=draw) < 0.1).float(),
    }


class Trainer:
    """A network with its optimiser, and its buffers if it has them."""

    def __init__(
        self, savings: Collection[str], size: int, spec: HybridSpec, device: torch.device
    ) -> None:
        self.network = make_network(savings, spec).to(device)
        self.batch = {n: value.to(device) for n, value in make_batch(size, spec.side).items()}
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self._unit: torch.Tensor | None = None  # the buffer for the network's input
        if "buffers" in savings:
            pool_gradients(self.network)
            self._unit = torch.empty(self.batch["voxels"].shape, device=device)
        self._low = "bf16" in savings

    def step(self) -> float:
        """Do one training step and return its loss."""
        # cached casts of shared weights would be missing when a forward pass is done again
        voxels, buffer = self.batch["voxels"], self._unit
        unit = voxels.float() / 255 if buffer is None else buffer.copy_(voxels).div_(255)
        kind = voxels.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self._low, cache_enabled=False):
            answers = self.network(unit)
        terms = hybrid_loss(Answers(*(out.float() for out in answers)), self.batch)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=self._unit is None)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        return float(loss.detach())


def measure(
    savings: Collection[str], size: int, steps: int, *, spec: HybridSpec | None = None
) -> dict[str, Any]:
    """Measure ``steps`` training steps: peak memory beyond the built network's, times, losses.

    ``tensor_bytes`` is the peak of all tensors during one further step, weights and optimiser
    included, by the allocator's calls.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(savings, size, spec or HybridSpec(), device)
    before = _start_peak(device)
    took, losses = [], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(trainer.step())
        took.append(time.perf_counter() - began)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
    return {
        "peak_bytes": peak - before,
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
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
    return _status("VmRSS")


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def _tensor_peak(trainer: Trainer, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        trainer.step()
        return torch.cuda.max_memory_allocated(device)
    # the bytes of weights, gradients, optimiser and batch between two steps
    weights = [*trainer.network.parameters(), *trainer.network.buffers()]
    states = [v for state in trainer.optimizer.state.values() for v in state.values()]
    slopes = [w.grad for w in weights if w.grad is not None]
    tensors = [*weights, *states, *slopes, *trainer.batch.values()]
    held = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainer.step()
    now = most = 0
    # the profiler lists every allocation and release in order: their running sum has the peak
    events = seen.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return held + most


def main() -> None:
    """Measure by the arguments ``SAVING+SAVING BATCH STEPS``; ``-`` is no saving."""
    savings, size, steps = sys.argv[1:]
    print(json.dumps(measure(savings.split("+"), int(size), int(steps))))


if __name__ == "__main__":
    main()
