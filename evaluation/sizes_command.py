"""``overread-eval sizes``: what smaller regions are worth; `edge.selection` holds what it gives."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from edge.screen import EdgeReader
from edge.settings import load_settings
from evaluation.cubes import read_cubes
from evaluation.open_readers import open_second
from evaluation.options import CloudModel, Data, Json, Split
from evaluation.progress import each
from evaluation.show import show
from evaluation.sizes import as_json as figures
from evaluation.sizes import read_sizes
from evaluation.tables import columns_table
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
    data: Data,
    split: Split = "val",
    every: Annotated[int, typer.Option(min=1, help="Every so many-th cube only.")] = 1,
    cloud_model: CloudModel = None,
    as_json: Json = False,
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
    show(result, as_json, _table(result))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['cubes']} cubes of {result['split']}"
    return columns_table(_COLUMNS, result["sizes"], title)
