"""``overread-models train``: the networks, what they are shown, and what would help them.

``overread-models distil``: the pool of regions, and students with and without teachers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.markdown import show_section
from models.options import (
    PHANTOMS,
    Cache,
    Data,
    Json,
    Minutes,
    Out,
    Phantoms,
    Rate,
    Resume,
    Screeners,
    Seed,
    Start,
)

train = typer.Typer(help="Train a network; --resume goes on after a kill.", no_args_is_help=True)


@train.command("screening")
def train_screening(
    data: Data,
    out: Out = Path("runs/screening"),
    minutes: Minutes = 50,
    resume: Resume = False,
    start: Start = None,
    rate: Rate = 3e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
    blocks: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Residual blocks at 1/4, 1/8 and 1/16; by default those of --start."),
    ] = None,
) -> None:
    """The screening network, from nothing or from weights given."""
    from models.training.runs import Run, run_screening

    run_screening(Run(data, out, minutes, rate, resume, start, cache, phantoms, seed), blocks)


@train.command("hybrid")
def train_hybrid(
    data: Data,
    screening: Screeners,
    out: Out = Path("runs/hybrid"),
    minutes: Minutes = 40,
    resume: Resume = False,
    start: Start = None,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """The hybrid network, on the screening networks' candidates, from the last one's stem."""
    from models.training.runs import Run, run_hybrid

    run_hybrid(Run(data, out, minutes, rate, resume, start, cache, phantoms, seed), screening)


@train.command("teacher")
def train_teacher(
    kind: Annotated[
        Literal["residual", "convnext", "multiscale"], typer.Option(help="What it is made of.")
    ],
    data: Data,
    screening: Screeners,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/KIND if none.")] = None,
    minutes: Minutes = 8,
    resume: Resume = False,
    start: Start = None,
    rate: Rate = 2e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """A teacher for distillation, trained on what the hybrid is trained on."""
    from models.distillation.teachers import run_teacher
    from models.networks.teacher import Kind
    from models.training.runs import Run

    folder = out or Path("runs") / kind
    run = Run(data, folder, minutes, rate, resume, start, cache, phantoms, seed)
    run_teacher(run, screening, Kind(kind))


@train.command("sheet")
def sheet(
    data: Data,
    png: Annotated[Path, typer.Argument(help="Where the picture goes.")],
    columns: Annotated[int, typer.Option(min=1, help="Samples of each kind.")] = 6,
    phantoms: Phantoms = 4,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """A picture of what the screening network is shown: mosaics, mirrored cubes, scans."""
    from models.training.runs import load_material
    from models.training.sheet import draw_samples, save_samples

    composer = load_material(data, cache, phantoms).composer
    save_samples(png, draw_samples(composer, columns, seed))
    typer.echo(png)


@train.command("curve")
def curve(
    data: Data,
    out: Annotated[Path, typer.Option(help="A folder for each run; finished ones are kept.")] = (
        Path("runs/curve")
    ),
    share: Annotated[
        list[float] | None,
        typer.Option(help="Of the training patients; 0.125, 0.25, 0.5 and 1 by default."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Training of each run.")] = 7,
    longer: Annotated[
        list[Path] | None, typer.Option(help="Folders of other runs, drawn beside.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    rate: Rate = 3e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The learning curve: the screening network anew on parts of the patients; resumable."""
    from models.training.learning_curve import learning_table, run_learning, save_curves
    from models.training.runs import Run

    shares = share or [0.125, 0.25, 0.5, 1.0]
    if any(not 0 < one <= 1 for one in shares):
        raise typer.BadParameter(f"--share: {shares} are not all above 0 and at most 1")
    run = Run(data, out, minutes, rate, True, None, cache, phantoms, seed)
    result = run_learning(run, shares, longer or [])
    words = [f"overread-models train curve --data {data} --out {out} --minutes {minutes:g}"]
    words += [f"--share {one:g}" for one in shares] + [f"--longer {path}" for path in longer or []]
    shown = {"command": " ".join(words), **result}
    if plot is not None:
        save_curves(plot, result)
    show_section(shown, as_json, learning_table(shown))


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
    from models.distillation.pool import make_pool
    from models.distillation.teachers import ask_teachers
    from models.training.runs import load_material, make_screening

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
    from models.distillation.compare import Comparison, distil_tables, run_compare

    asked = Comparison(start, tuple(teachers), pool, out, seeds, minutes, weight, temperature, rate)
    options = [f"--start {start}", *(f"--teachers {path}" for path in teachers)]
    options += [f"--pool {pool} --seeds {seeds} --minutes {minutes:g} --rate {rate:g} --out {out}"]
    line = " ".join(["overread-models distil compare", *options])
    result = {"command": line, **run_compare(asked)}
    show_section(result, as_json, distil_tables(result))
