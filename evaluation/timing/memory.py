"""``overread-eval memory``: peak memory and time of a training step with each way to save memory.

Each measurement is a process of its own, and each round measures every variant once, A B A B.
Only those processes load torch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.errors import ServiceFailed
from evaluation.run import SHARE, Table, command, each

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""glibc takes large blocks from its heap and gives nothing back; CUDA's pool can grow in place."""

PLAIN = "plain"
VARIANTS: Mapping[str, str | None] = {
    PLAIN: None,
    "checkpointing": "60-70 %",
    "recomputation": "50-60 %",
    "bf16": "40-50 %",
    "sharing": "30-40 %",
    "buffers+allocator": "20-30 %",
    "checkpointing+bf16": None,
    "checkpointing+bf16+sharing+buffers+allocator": None,
}
"""Combinations of savings, the first has none; and what the published system claims to save.

For the savings see `evaluation.timing.training_memory`.
"""

ALIKE = {True: 2e-2, False: 1e-3}
"""Largest relative difference of losses that should be equal: with bf16, and without."""

BATCH, STEPS, ROUNDS = 32, 4, 2
"""ROIs of a step, steps of each process, and processes of each variant."""


def measure(variant: str) -> dict[str, Any]:
    """Run one process; its peak bytes, times and losses."""
    savings = "-" if variant == PLAIN else variant
    module = "evaluation.timing.training_memory"
    line = [sys.executable, "-m", module, savings, str(BATCH), str(STEPS)]
    env = {**os.environ, **(ALLOCATOR if "allocator" in variant else {})}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ServiceFailed(f"{variant}: {said[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def as_dict(found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of each variant over its rounds, and its saving against the first."""
    rows: list[dict[str, Any]] = []
    known: dict[tuple[bool, ...], Sequence[float]] = {}
    for variant, runs in found.items():
        # losses are equal where neither precision nor weights differ
        like = known.setdefault(("bf16" in variant, "sharing" in variant), runs[0]["losses"])
        losses = np.array([run["losses"] for run in runs])
        apart = float((np.abs(losses - like) / np.maximum(np.abs(like), 1e-9)).max())
        # the first step of a process is a warm-up
        steps = [second for run in runs for second in run["took_s"][1:] or run["took_s"]]
        row = {
            "name": variant.replace("+", ", "),
            "peak_mb": float(np.median([run["peak_bytes"] for run in runs])) / 1e6,
            "step_s": float(np.median(steps)),
            "parameters": runs[0]["parameters"],
            "losses": "equal" if apart <= ALIKE["bf16" in variant] else f"{apart:.1%} apart",
            "published": VARIANTS.get(variant),
        }
        first = rows[0] if rows else row
        row["peak_mb_saved"] = 1 - row["peak_mb"] / first["peak_mb"]
        row["times_plain"] = row["step_s"] / first["step_s"]
        rows.append(row)
    first_runs = next(iter(found.values()))
    device = first_runs[0]["device"]
    return {"batch": BATCH, "device": device, "rounds": len(first_runs), "variants": rows}


@command(
    Table("variants", {
        "name": "training step with", "parameters": ("parameters", "{:,}"),
        "peak_mb": ("peak MB", "{:.0f}"), "peak_mb_saved": ("saved", SHARE),
        "published": "published", "step_s": ("step s", "{:.2f}"),
        "times_plain": ("time to plain", "{:.2f}"), "losses": "losses",
    }, title="Training the hybrid, batch {batch}"),
    "Medians of {rounds} processes each, in turn; {cores} cores of {cpu}",
)  # fmt: skip
def memory() -> dict[str, Any]:
    """Peak memory and time of a training step of the hybrid; needs the extra `train`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for variant in each([*VARIANTS] * ROUNDS, "training steps"):
        found.setdefault(variant, []).append(measure(variant))
    return as_dict(found)
