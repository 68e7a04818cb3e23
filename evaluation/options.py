"""What more than one command can be told: each option under one name, with one help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.extra import require


def _drawn(path: Path | None) -> Path | None:
    """A chart that cannot be drawn is refused before anything is measured."""
    if path is not None:
        require("matplotlib")
    return path


Csv = Annotated[Path, typer.Option(metavar="CSV", exists=True, dir_okay=False)]
Data = Annotated[Path, typer.Option(metavar="DIR", help="NAME.npz and index.csv.")]
Split = Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which cubes.")]
Scans = Annotated[list[Path], typer.Option(metavar="DIR", help="Whole scans; DIR DIR ...")]
MoreScans = Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...")]

Model = Annotated[str | None, typer.Option(help="Screening model; the edge's own by default.")]
CloudModel = Annotated[str | None, typer.Option(help="Second reader; the cloud's by default.")]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Of each study.")]
Reserve = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Kept back from the escalation.")
]

STUDIES = Path("runs/studies")
Cache = Annotated[Path, typer.Option(metavar="DIR", help="Where the studies are kept.")]
Phantoms = Annotated[int, typer.Option(min=1, help="Different studies; they take turns.")]

Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap, and of the phantoms.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Draw a chart; needs the extra train.", callback=_drawn),
]
Plots = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Draw the Pareto charts here; needs the extra train.", callback=_drawn
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
