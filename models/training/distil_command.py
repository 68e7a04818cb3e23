"""``overread-models distil``: the pool of regions, and students with and without teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.options import PHANTOMS, Cache, Data, Json, Phantoms, Rate, Screeners
from models.show import show_section
from models.training.distil_page import section

distil = typer.Typer(help="Distil teachers into the screening network.", no_args_is_help=True)

Pool = Annotated[Path, typer.Option(help="Folder of the pool and of what teachers say of it.")]


@distil.command("pool")
def pool(
    data: Data,
    screening: Screeners,
    pool: Pool = Path("runs/pool"),
    count: Annotated[int, typer.Option(min=20, help="How many regions to draw.")] = 6000,
    teachers: Annotated[list[Path] | None, typer.Option(help="Ask these at once.")] = None,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Annotated[int, typer.Option(help="Seed of the regions.")] = 0,
) -> None:
    """Draw the regions that students learn from and are judged on; keep what teachers say."""
    from models.training.distil_pool import make_pool
    from models.training.distil_teachers import ask_teachers
    from models.training.recipe import load_material
    from models.training.runs import make_screening

    screeners = [make_screening(path).eval() for path in screening]
    drawn = make_pool(
        load_material(data, cache, phantoms), data, screeners, pool, count=count, seed=seed
    )
    for teacher in ask_teachers(teachers or [], drawn, pool):
        typer.echo(f"{teacher.name}: temperature {teacher.temperature:.2f}", err=True)
    typer.echo(f"{pool}: {len(drawn.voxels)} regions, {int(drawn.label.sum())} with a nodule")


@distil.command("compare")
def compare(
    start: Annotated[Path, typer.Option(help="Weights of an early screening network.")],
    teachers: Annotated[list[Path], typer.Option(help="averaged.pt of trained teachers.")],
    pool: Pool = Path("runs/pool"),
    out: Annotated[Path, typer.Option(help="Folder of the students.")] = Path("runs/distil"),
    seeds: Annotated[int, typer.Option(min=1, help="Students of each arm.")] = 3,
    minutes: Annotated[float, typer.Option(help="Time that one student may take.")] = 2.5,
    weight: Annotated[
        float, typer.Option(min=0, max=1, help="The soft target's share of the loss.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(min=0.1, help="Of the distillation.")] = 2.0,
    rate: Rate = 3e-4,
    as_json: Json = False,
) -> None:
    """No teacher, the best one, their mean, dynamic weights; finished students are kept."""
    from models.training.distil import Comparison, run_compare

    asked = Comparison(start, tuple(teachers), pool, out, seeds, minutes, weight, temperature, rate)
    options = [f"--start {start}", *(f"--teachers {path}" for path in teachers)]
    options += [f"--pool {pool} --seeds {seeds} --minutes {minutes:g} --rate {rate:g} --out {out}"]
    line = " ".join(["overread-models distil compare", *options])
    result = {"command": line, **run_compare(asked)}
    show_section(result, as_json, section({"distillation": result}))
