"""The options that several commands of `overread-models` have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Kind = Annotated[Literal["screening", "hybrid"], typer.Argument(help="Which network.")]
Method = Literal["minmax", "percentile", "entropy"]

Data = Annotated[Path, typer.Option(help="Folder with nodules/ and ct/, as docs/models.md tells.")]
Cache = Annotated[Path, typer.Option(help="Where the phantoms are kept.")]
Phantoms = Annotated[int, typer.Option(help="How many phantoms to learn from as well.")]
Screeners = Annotated[
    list[Path],
    typer.Option(
        help="Weights of screening networks (averaged.pt or .onnx), the shipped one last."
    ),
]

Out = Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoint and log.")]
Minutes = Annotated[float, typer.Option(help="Time to spend training, resumptions included.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
Start = Annotated[
    Path | None, typer.Option(help="Weights to begin with: a run's averaged.pt or KIND-fp32.onnx.")
]
Seed = Annotated[int, typer.Option(help="Seed of weights and samples.")]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PHANTOMS = Path("runs/phantoms")
"""Where the phantoms are kept if nobody says otherwise."""
