"""Measures training steps of the hybrid in this process: `python -m models.training.memory_step`.

A process of its own for each measurement: what another left in the allocator would count too.
The result is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from models.networks.hybrid import Answers, HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork
from models.training.losses import hybrid_loss
from models.training.memory import (
    GradientBuffer,
    InputBuffer,
    checkpoint_blocks,
    recompute_cheap,
    share_encoder,
)
from models.training.stream import Batch

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
