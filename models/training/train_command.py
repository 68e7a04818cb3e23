"""``overread-models train``: the screening network, the hybrid, and teachers of other kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.options import (
    PHANTOMS,
    Cache,
    Data,
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
    from models.networks.teacher import Kind
    from models.training.runs import Run
    from models.training.teacher import run_teacher

    folder = out or Path("runs") / kind
    run = Run(data, folder, minutes, rate, resume, start, cache, phantoms, seed)
    run_teacher(run, screening, Kind(kind))
