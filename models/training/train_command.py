"""``overread-models train``: the networks, what they are shown, and what would help them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
from models.show import show_section

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
    from models.networks.teacher import Kind
    from models.training.runs import Run
    from models.training.teacher import run_teacher

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
    from models.training.recipe import load_material
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
    from models.training.learning import run_learning
    from models.training.learning_page import save_curves, section
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
    show_section(shown, as_json, section({"learning": shown}))
