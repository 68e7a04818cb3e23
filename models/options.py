"""The options that several commands of `overread-models` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Kind = Annotated[Literal["screening", "hybrid"], typer.Argument(help="Kind of network.")]
Method = Annotated[
    Literal["minmax", "percentile", "entropy"],
    typer.Option(help="Method for the initial INT8 ranges."),
]

Data = Annotated[
    Path, typer.Option(help="Folder with nodules/ and ct/, as described in docs/models.md.")
]
Cache = Annotated[Path, typer.Option(help="Cache folder of the phantoms.")]
Phantoms = Annotated[int, typer.Option(help="Number of phantoms among the training scans.")]
Screeners = Annotated[
    list[Path],
    typer.Option(
        help="Weights of screening networks (averaged.pt or .onnx), the shipped one last."
    ),
]

Out = Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoint and log.")]
RunsOut = Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")]
Minutes = Annotated[float, typer.Option(help="Minutes of training, resumptions included.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continuation of the last checkpoint.")]
Start = Annotated[
    Path | None, typer.Option(help="Initial weights: averaged.pt of a run or KIND-fp32.onnx.")
]
Seed = Annotated[int, typer.Option(help="Seed of weights and samples.")]

Json = Annotated[bool, typer.Option("--json", help="JSON output.")]

PHANTOMS = Path("runs/phantoms")
"""The default cache folder of the phantoms."""
