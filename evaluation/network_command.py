"""``overread-eval network``: which artifacts run on which engines, and how it is shown."""

from __future__ import annotations

from typing import Annotated

import typer

from evaluation import network
from evaluation.options import Json
from evaluation.progress import each
from evaluation.show import show
from evaluation.tables import passes_table


def network_command(
    model: Annotated[
        list[str] | None, typer.Option(help="Artifact, or ARTIFACT:stored; several.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine; give several.")] = None,
    shape: Annotated[str, typer.Option(help="Lung box z,y,x for screening.")] = "256,224,320",
    batch: Annotated[int, typer.Option(min=1, help="Boxes or regions a pass.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="0: every core.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 20,
    as_json: Json = False,
) -> None:
    """Time of one pass of artifacts on engines, in turn, on this machine."""
    box = _box_shape(shape)
    entered = network.enter(model or ["screening-int8"], engine or ["auto"], threads)
    network.run_in_turn(entered, box, each(range(repeat), "rounds"), batch=batch)
    result = network.as_json(entered, box, batch)
    title = f"{batch} x {shape} voxels, {result['threads']} threads of {result['cpu']}"
    show(result, as_json, passes_table(result["passes"], title))


def _box_shape(text: str) -> tuple[int, int, int]:
    sides = [side.strip() for side in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"--shape {text!r} is not z,y,x in voxels, such as 256,224,320")
    z, y, x = map(int, sides)
    return z, y, x
