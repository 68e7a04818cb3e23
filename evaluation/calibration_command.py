"""``overread-eval calibration``: how far the scores of edge and cloud are probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from edge.settings import load_settings
from evaluation.bootstrap import RESAMPLES
from evaluation.calibration_cases import Candidates, Pair, cube_rows, gathered, scan_rows
from evaluation.calibration_plot import save_reliability
from evaluation.calibration_result import as_json as figures
from evaluation.cubes import read_cubes
from evaluation.marks import read_marks
from evaluation.open_readers import open_second
from evaluation.options import CloudModel, Data, Json, Model, MoreScans, Plot, Resamples, Scans
from evaluation.progress import each
from evaluation.scan_host import of_splits
from evaluation.show import show
from evaluation.truth import Lesion, read_truth, scan_folders, scan_name
from models.extra import require
from models.markdown import interval
from models.runtime.screener import open_screener

HEADS = ["reader", "split", "ECE before", "ECE after", "ECE before, as found",
         "ECE after, as found"]  # fmt: skip
METHOD_HEADS = ["reader", "method", "split", "ECE", "log loss", "Brier"]


def calibration_command(
    data: Data,
    scans: Scans,
    truth: Annotated[
        Path, typer.Option(metavar="CSV", exists=True, dir_okay=False, help="With column role.")
    ],
    more_scans: MoreScans = None,
    fitted_on: Annotated[str, typer.Option(metavar="NAME", help="The split of the fit.")] = "val",
    unseen: Annotated[str, typer.Option(metavar="NAME", help="The split it never saw.")] = "test",
    model: Model = None,
    cloud_model: CloudModel = None,
    limit: Annotated[int, typer.Option(min=0, help="So many cubes a split; 0: all.")] = 0,
    plot: Plot = None,
    resamples: Resamples = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Of folds and bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Reliability and calibration error before and after the fit; other methods beside it."""
    require("sklearn")
    settings = load_settings(screening_model=model)
    screener = open_screener(
        settings.screening_model, engine=settings.engine, threads=settings.threads
    )
    pair = Pair(screener, open_second(cloud_model))
    known = read_truth(truth)
    folders = scan_folders([*scans, *(more_scans or [])], set(known))
    splits = {
        name: _read(pair, data, name, of_splits(folders, truth, (name,)), known, limit)
        for name in (fitted_on, unseen)
    }
    result: dict[str, Any] = {
        "edge_model": pair.screener.name,
        "cloud_model": pair.second.name,
        **figures(splits, pair.fitted, fitted_on, resamples=resamples, seed=seed),
    }
    if plot is not None:
        save_reliability(plot, result)
    show(result, as_json, *tables(result))


def _read(
    pair: Pair,
    data: Path,
    split: str,
    folders: list[Path],
    known: dict[str, tuple[Lesion, ...]],
    limit: int,
) -> Candidates:
    cubes = read_cubes(data, (split,))[: limit or None]
    marks = read_marks(data, split)
    rows = [row for cube in each(cubes, f"cubes of {split}")
            for row in cube_rows(pair, cube, marks.get(cube.name, ()))]  # fmt: skip
    rows += [row for folder in each(folders, f"scans of {split}")
             for row in scan_rows(pair, folder, known.get(scan_name(folder), ()))]  # fmt: skip
    return gathered(rows)


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Both tables, and how they were measured."""
    first, second = Table(*HEADS, title="Calibration"), Table(*METHOD_HEADS, title="Methods")
    for row in _rows(result):
        first.add_row(*row)
    for row in _method_rows(result):
        second.add_row(*row)
    return [first, second, result["prior"], _methods_said(result)]


def _methods_said(result: Mapping[str, Any]) -> str:
    split = result["fitted_on"]
    return (
        f"Methods at prior 0.5: on {split} cross-validated over patients, on the other splits"
        f" fitted on all of {split}. As shipped, {split} is judged on what it was fitted on. For"
        " merged a method is put on top of the shipped merger."
    )


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    keys = ("before", "after", "before_as_found", "after_as_found")
    return [
        [reader, split, *(interval(found[key]["ece"]) for key in keys)]
        for split, of in result["splits"].items()
        for reader, found in of["readers"].items()
    ]


def _method_rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for reader, methods in result["methods"].items():
        shipped = {split: of["readers"][reader]["after"] for split, of in result["splits"].items()}
        for method, by_split in {"as shipped": shipped, **methods}.items():
            rows += [
                [reader, method, split, interval(one["ece"]), f"{one['log_loss']:.3f}",
                 f"{one['brier']:.3f}"]
                for split, one in by_split.items()
            ]  # fmt: skip
    return rows
