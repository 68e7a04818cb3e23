"""`overread-models`: train, export, fit and list the models. Only ``list`` works without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import rich
import typer

from models.compression.guarantee import ALPHA, DELTA
from models.compression.prune_command import prune
from models.compression.quantize_command import int4, qat, ranges, sensitivity
from models.listing import list_models
from models.options import Data, Kind, Method
from models.runtime.errors import ModelError
from models.training.distil_command import distil
from models.training.train_command import train

TRAIN_EXTRA = {"torch", "tomli_w", "onnxscript", "matplotlib", "scipy"}
"""Modules that only the extra `train` installs."""

app = typer.Typer(help="Train, export and list Overread's models.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(prune, name="prune")
app.add_typer(distil, name="distil")
app.command("list")(list_models)


@app.command("export")
def export(
    kind: Kind,
    data: Data,
    weights: Annotated[Path, typer.Option(help="averaged.pt of a run.")],
    method: Annotated[Method, typer.Option(help="How the ranges are found.")] = "minmax",
) -> None:
    """Export trained weights as FP32 and INT8 artifacts and enter both in the manifest."""
    from models.compression.runs import run_export

    run_export(kind, data, weights, method)


for command in (qat, int4, ranges, sensitivity):
    app.command()(command)


@app.command("fit")
def fit(
    data: Data,
    screening: Annotated[str, typer.Option(help="The edge's artifact.")] = "screening-int8",
    hybrid: Annotated[str, typer.Option(help="The cloud's artifact.")] = "hybrid-int8",
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Share of nodules missed at most.")
    ] = ALPHA,
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Chance that more are missed.")
    ] = DELTA,
) -> None:
    """Fit calibration, merger and thresholds on validation cases; write them to the manifest.

    With them goes what they promise of missed nodules: what is asked for where enough patients
    allow it, with lower thresholds if need be, and else what the fitted ones do promise.
    """
    from models.compression.promise import Asked
    from models.compression.runs import run_fit

    run_fit(data, screening, hybrid, Asked(alpha, delta))


@app.command("split")
def split(
    name: Annotated[str, typer.Argument(help="A hybrid artifact.")],
    parts: Annotated[int, typer.Option(min=2, help="How many; the cloud's setting stages.")] = 3,
) -> None:
    """Cut an artifact into parts of about equal time that the cloud runs as a pipeline."""
    from models.compression.parts import export_parts

    export_parts(name, parts)


def main() -> None:
    """The command ``overread-models``; what cannot be done ends with a line that says why."""
    rich.reconfigure(stderr=True)  # progress; stdout stays for the result
    try:
        app()
    except (ModelError, OSError) as error:
        _end(f"{type(error).__name__}: {error}", error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        _end(f"{error.name} is missing: needs the extra `train`: pip install '.[train]'", error)


def _end(line: str, cause: Exception) -> NoReturn:
    typer.echo(line, err=True)
    raise SystemExit(1) from cause


if __name__ == "__main__":
    main()
