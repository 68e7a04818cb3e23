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
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
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


def training(
    savings: Collection[str], size: int, spec: HybridSpec, device: torch.device
) -> tuple[HybridNetwork, Callable[[], float]]:
    """Return a network, and what does one training step and returns its loss."""
    network = make_network(savings, spec).to(device)
    batch = {name: value.to(device) for name, value in make_batch(size, spec.side).items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    voxels, buffer = batch["voxels"], None
    if "buffers" in savings:
        pool_gradients(network)
        buffer = torch.empty(voxels.shape, device=device)

    def step() -> float:
        unit = voxels.float() / 255 if buffer is None else buffer.copy_(voxels).div_(255)
        # cached casts of shared weights would be missing when a forward pass is done again
        low = "bf16" in savings
        with torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            answers = network(unit)
        terms = hybrid_loss(Answers(*(out.float() for out in answers)), batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=buffer is None)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        return float(loss.detach())

    return network, step


def measure(
    savings: Collection[str], size: int, steps: int, *, spec: HybridSpec | None = None
) -> dict[str, Any]:
    """Measure ``steps`` training steps: peak memory beyond the built network's, times, losses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, step = training(savings, size, spec or HybridSpec(), device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
        before = _status("VmRSS")
    took, losses = [], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(step())
        took.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
    return {
        "peak_bytes": peak - before,
        "took_s": took,
        "losses": losses,
        "parameters": sum(p.numel() for p in network.parameters()),
        "device": device.type,
    }


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def main() -> None:
    """Measure by the arguments ``SAVING+SAVING BATCH STEPS``; ``-`` is no saving."""
    savings, size, steps = sys.argv[1:]
    print(json.dumps(measure(savings.split("+"), int(size), int(steps))))


if __name__ == "__main__":
    main()
