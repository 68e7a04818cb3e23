"""``overread-eval memory``: what each way of saving memory saves in training, and what it costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from evaluation import memory
from evaluation.options import Json
from evaluation.progress import each
from evaluation.show import show

HEADS = ("training step with", "parameters", "peak MB", "saved", "tensors MB", "saved",
         "published", "step s", "to plain", "losses")  # fmt: skip

NOTE = (
    "Peak is the process's high-water mark beyond the built network ({where}); tensors is the "
    "most that weights, gradients, optimiser, batch and activations hold at one moment of a step, "
    "without what the libraries keep for themselves. Medians of {rounds} processes each, "
    "in turn; batch of {batch} regions; {cores} cores of {cpu}. Losses are compared step by step "
    "with the first variant that should give the same."
)


def memory_command(
    variant: Annotated[
        list[str] | None, typer.Option(help="Such as checkpointing+bf16; all by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Regions of a step.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each process.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each variant.")] = 2,
    as_json: Json = False,
) -> None:
    """Peak memory and time of a training step of the hybrid; needs the extra `train`."""
    chosen = [one for one in memory.VARIANTS if not one.savings or _asked(one.name, variant)]
    if variant and len(chosen) < len({*variant, "plain"}):
        known = ", ".join(one.name for one in memory.VARIANTS)
        raise typer.BadParameter(f"--variant {' '.join(variant)}: there are {known}")
    found = memory.measure_in_turn(each(chosen * rounds, "training steps"), batch, steps)
    result = memory.as_json(chosen, found, batch)
    show(result, as_json, table(result), note(result))


def _asked(name: str, variants: list[str] | None) -> bool:
    return not variants or name in variants


def table(result: dict[str, Any]) -> Table:
    """For people."""
    shown = Table(*HEADS, title=f"Training the hybrid, batch {result['batch']}")
    for row in result["variants"]:
        shown.add_row(*_cells(row))
    return shown


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
