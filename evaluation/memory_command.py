"""``overread-eval memory``: what each way of saving memory saves in training, and what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

from evaluation import memory
from evaluation.memory_page import note, table
from evaluation.options import Json
from evaluation.progress import each
from evaluation.show import show


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
