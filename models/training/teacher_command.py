"""``overread-models train teacher``: a teacher of another kind than the hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def train_teacher(
    kind: Annotated[
        Literal["residual", "convnext", "multiscale"], typer.Option(help="What it is made of.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with nodules/ and ct/.")],
    screening: Annotated[
        list[Path], typer.Option(help="Weights of screening networks, the shipped one last.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/KIND if none.")] = None,
    minutes: Annotated[float, typer.Option(help="Time to spend, resumptions included.")] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    start: Annotated[Path | None, typer.Option(help="Weights to begin with.")] = None,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    phantoms: Annotated[int, typer.Option(help="How many phantoms to learn from as well.")] = 16,
    cache: Annotated[Path, typer.Option(help="Where phantoms are kept.")] = Path("runs/phantoms"),
    seed: Annotated[int, typer.Option(help="Seed of weights and samples.")] = 0,
) -> None:
    """A teacher for distillation, trained on what the hybrid is trained on."""
    from models.networks.teacher import Kind
    from models.training.runs import Run
    from models.training.teacher import run_teacher

    folder = out or Path("runs") / kind
    run = Run(data, folder, minutes, rate, resume, start, cache, phantoms, seed)
    run_teacher(run, screening, Kind(kind))
