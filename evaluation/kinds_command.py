"""``overread-eval kinds``: what the second reader says of a nodule beyond that it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.bootstrap import RESAMPLES
from evaluation.kinds import as_json as figures
from evaluation.kinds import read_kinds
from evaluation.open_readers import open_second
from evaluation.progress import each
from evaluation.tables import kinds_table


def kinds_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="NAME.npz and index.csv.")],
    split: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which cubes.")],
    cloud_model: Annotated[
        str | None, typer.Option(help="Second reader; the cloud's by default.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Malignancy, texture, diameter and outline of the second reader against the readers'."""
    splits = tuple(split.split(","))
    read = read_kinds(data, splits, open_second(cloud_model), lambda c: each(c, "nodules"))
    result = {"split": split, **figures(read, resamples=resamples, seed=seed)}
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(kinds_table(result))
