"""The memory matrix in words: a table for the terminal, a section for the page."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from models import markdown

HEADS = ("training step with", "parameters", "peak MB", "saved", "tensors MB", "saved",
         "published", "step s", "to plain", "losses")  # fmt: skip

NOTE = (
    "Peak is the process's high-water mark beyond the built network ({where}); tensors is the "
    "most that weights, gradients, optimiser, batch and activations hold at one moment of a step, "
    "without what the libraries keep for themselves. Medians of {rounds} processes each, "
    "in turn; batch of {batch} regions; {cores} cores of {cpu}. Losses are compared step by step "
    "with the first variant that should give the same."
)


def table(result: dict[str, Any]) -> Table:
    """For people."""
    shown = Table(*HEADS, title=f"Training the hybrid, batch {result['batch']}")
    for row in result["variants"]:
        shown.add_row(*_cells(row))
    return shown


def section(found: dict[str, Any]) -> str:
    """The page's section, from `memory.json`; empty if it was not measured."""
    result = found.get("memory")
    if result is None:
        return ""
    rows = [_cells(row) for row in result["variants"]]
    head = f"## Memory of a training step of the hybrid network\n\n{note(result)}\n\n"
    return head + markdown.table(HEADS, rows) + markdown.commands(found, "memory")


def note(result: dict[str, Any]) -> str:
    """How it was measured."""
    where = "memory that CUDA allocated" if result["device"] == "cuda" else "VmHWM of the kernel"
    values = {key: result[key] for key in ("rounds", "batch", "cores", "cpu")}
    return NOTE.format(where=where, **values)


def _cells(row: dict[str, Any]) -> list[str]:
    published = row["published"]
    plain = row["like"] == row["name"]
    losses = "-" if plain else "equal" if row["loss_equal"] else f"{row['loss_apart']:.1%} apart"
    return [
        row["name"].replace("+", ", "),
        f"{row['parameters']:,}",
        f"{row['peak_bytes'] / 1e6:.0f}",
        f"{row['peak_bytes_saved']:.0%}",
        f"{row['tensor_bytes'] / 1e6:.0f}",
        f"{row['tensor_bytes_saved']:.0%}",
        f"{published[0]}-{published[1]} %" if published else "",
        f"{row['step_s']:.2f}",
        f"{1 - row['step_s_saved']:.2f}",
        losses,
    ]
