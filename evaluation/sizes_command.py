"""``overread-eval sizes``: what smaller regions are worth; `edge.sizes` holds what it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edge.screen import EdgeReader
from edge.settings import load_settings
from evaluation.cubes import read_cubes
from evaluation.open_readers import open_second
from evaluation.progress import each
from evaluation.sizes import as_json as figures
from evaluation.sizes import read_sizes
from models.runtime.screener import open_screener

_COLUMNS = {
    "size": ("size", "{}"),
    "candidates": ("candidates", "{}"),
    "nodules": ("nodules", "{}"),
    "agreement": ("as the full one", "{:.1%}"),
    "sensitivity": ("found", "{:.1%}"),
    "sensitivity_full": ("found, full", "{:.1%}"),
    "false_share": ("others taken", "{:.1%}"),
    "false_share_full": ("others, full", "{:.1%}"),
    "auc": ("AUC", "{:.3f}"),
    "auc_full": ("AUC, full", "{:.3f}"),
    "share": ("share", "{:.2f}"),
}


def sizes_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="NAME.npz and index.csv.")],
    split: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which cubes.")] = "val",
    every: Annotated[int, typer.Option(min=1, help="Every so many-th cube only.")] = 1,
    cloud_model: Annotated[
        str | None, typer.Option(help="Second reader; the cloud's by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """The second reader's verdicts on full, reduced and slab regions of the same candidates."""
    settings = load_settings()
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader, second = EdgeReader.of(screener), open_second(cloud_model)
    cubes = read_cubes(data, tuple(split.split(",")))[::every]
    asked = read_sizes(each(cubes, "cubes"), reader.screen, second, reader.thresholds)
    result = {
        "split": split,
        "cubes": len(cubes),
        "models": [reader.described, second.name],
        **figures(asked, reader.thresholds, reader.weights),
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['cubes']} cubes of {result['split']}"
    table = Table(*(words for words, _ in _COLUMNS.values()), title=title, box=SIMPLE_HEAD)
    for one in result["sizes"]:
        table.add_row(*(form.format(one[name]) for name, (_, form) in _COLUMNS.items()))
    return table
