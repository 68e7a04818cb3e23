"""``overread-eval calibration``: how far the scores of edge and cloud are probabilities.

The figures of calibration for machines: each reader before and after, and what else there is.

Reliability diagrams as a chart: one panel per reader and split, before and after the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.settings import load_settings
from evaluation.accuracy.bootstrap import RESAMPLES
from evaluation.accuracy.calibration import (
    EVEN,
    METHODS,
    BoolArray,
    Reliability,
    at_prior,
    brier,
    class_weights,
    cross_validated,
    ece_interval,
    log_loss,
    reliability,
)
from evaluation.accuracy.calibration_cases import Candidates, Pair, cube_rows, gathered, scan_rows
from evaluation.accuracy.data import (
    Lesion,
    read_cubes,
    read_marks,
    read_truth,
    scan_folders,
    scan_name,
)
from evaluation.accuracy.nodules import save_chart
from evaluation.accuracy.scores import Fitted, calibrated
from evaluation.common.cli import (
    CloudModel,
    Data,
    Json,
    Model,
    MoreScans,
    Plot,
    Resamples,
    Scans,
    each,
    show,
)
from evaluation.common.readers import open_second
from evaluation.lesion_insertion.hosts import of_splits
from imaging.volume import FloatArray
from models.charts import new_figure
from models.extra import require
from models.markdown import Rows, interval
from models.runtime.screener import open_screener

READERS = ("edge", "cloud", "merged")

PRIOR = (
    "Class prior 0.5: nodules and false candidates weigh the same, as in the fit. Where it is said"
    " to be as found, each candidate counts once, and scores are taken to the share of nodules"
    " that the fitting split has. Before: the networks' own logits, for merged their mean."
)


def before(of: Candidates) -> dict[str, FloatArray]:
    """Scores without any fit."""
    logits = {"edge": of.edge, "cloud": of.cloud, "merged": (of.edge + of.cloud) / 2}
    return {name: calibrated(logit) for name, logit in logits.items()}


def after(of: Candidates, fitted: Fitted) -> dict[str, FloatArray]:
    """Scores as they are shipped."""
    edge, merged = fitted.scores(of.edge, of.cloud)
    return {"edge": edge, "cloud": calibrated(of.cloud, fitted.cloud), "merged": merged}


def as_dict(
    splits: Mapping[str, Candidates], fitted: Fitted, fit_split: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Every split and reader; ``fit_split`` is the one that calibration was fitted on.

    Raises:
        KeyError: ``fit_split`` is none of the splits.
    """
    learnt = splits[fit_split]
    found = float(learnt.nodule.mean())
    return {
        "prior": PRIOR,
        "fitted_on": fit_split,
        "prior_as_found": found,
        "splits": {
            name: {
                "candidates": int(of.nodule.size),
                "nodules": int(of.nodule.sum()),
                "groups": int(np.unique(of.group).size),
                "readers": {
                    reader: _reader_json(of, fitted, reader, found, resamples, seed)
                    for reader in READERS
                },
            }
            for name, of in splits.items()
        },
        "methods": _methods_json(splits, fitted, fit_split, resamples, seed),
    }


def _reader_json(
    of: Candidates, fitted: Fitted, reader: str, found: float, resamples: int, seed: int
) -> dict[str, Any]:
    raw, shipped = before(of)[reader], after(of, fitted)[reader]
    return {
        "before": _judged(raw, of, EVEN, resamples, seed),
        "after": _judged(shipped, of, EVEN, resamples, seed),
        "before_as_found": _judged(raw, of, found, resamples, seed),
        "after_as_found": _judged(at_prior(shipped, found), of, found, resamples, seed),
    }


def _methods_json(
    splits: Mapping[str, Candidates], fitted: Fitted, fit_split: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Each method on the fitting split by cross-validation, on the others fitted on all of it."""
    return {
        reader: {
            method: {
                name: _judged(
                    _by_method(method, reader, of, splits[fit_split], fitted, seed),
                    of, EVEN, resamples, seed,
                )
                for name, of in splits.items()
            }
            for method in METHODS
        }
        for reader in READERS
    }  # fmt: skip


def _by_method(
    method: str, reader: str, of: Candidates, learnt: Candidates, fitted: Fitted, seed: int
) -> FloatArray:
    fit, logit = METHODS[method], _logit_of(learnt, fitted, reader)
    if of is learnt:
        return cross_validated(fit, logit, learnt.nodule, learnt.group, seed)
    return fit(logit, learnt.nodule)(_logit_of(of, fitted, reader))


def _logit_of(of: Candidates, fitted: Fitted, reader: str) -> FloatArray:
    """What a method is fitted on: a network's own logit, or that of the shipped merger."""
    if reader != "merged":
        return of.edge if reader == "edge" else of.cloud
    merged = np.clip(after(of, fitted)["merged"], 1e-9, 1 - 1e-9)
    return np.asarray(np.log(merged / (1 - merged)))


def _judged(
    score: FloatArray, of: Candidates, prior: float, resamples: int, seed: int
) -> dict[str, Any]:
    weight = class_weights(of.nodule, prior)
    error = ece_interval(score, of.nodule, of.group, prior, resamples=resamples, seed=seed)
    return {
        "ece": error.as_dict(),
        "log_loss": log_loss(score, of.nodule, weight),
        "brier": brier(score, of.nodule, weight),
        "bins": _bins_json(score, of.nodule, weight),
    }


def _bins_json(score: FloatArray, nodule: BoolArray, weight: FloatArray) -> dict[str, list[float]]:
    found: Reliability = reliability(score, nodule, weight)
    return {"score": found.score.round(5).tolist(), "share": found.share.round(5).tolist()}


COLOURS = {"before": "tab:gray", "after": "tab:blue"}


def draw_reliability(result: Mapping[str, Any]) -> Any:
    """The figure: a row of panels for each split, a column for each reader."""
    splits = result["splits"]
    figure = new_figure(3.8 * len(READERS), 3.8 * len(splits) + 0.6)
    rows = figure.subplots(len(splits), len(READERS), squeeze=False)
    for row, (split, found) in zip(rows, splits.items(), strict=True):
        for axes, reader in zip(row, READERS, strict=True):
            _panel(axes, f"{reader}, {split}", found["readers"][reader])
    figure.suptitle(f"Reliability at class prior {EVEN:g}, fitted on {result['fitted_on']}")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def save_reliability(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the chart as PNG; errors as `evaluation.accuracy.nodules.save_chart`."""
    save_chart(draw_reliability(result), path)


def _panel(axes: Any, title: str, reader: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    for key, colour in COLOURS.items():
        bins = reader[key]["bins"]
        axes.plot(
            bins["score"], bins["share"], "o-", color=colour, markersize=4, label=f"{key} the fit"
        )
    errors = ", ".join(f"{key} {reader[key]['ece']['value']:.3f}" for key in COLOURS)
    axes.set_title(f"{title}\nECE {errors}", fontsize="medium")
    axes.set(xlabel="mean score of a bin", ylabel="share of nodules", aspect="equal")
    axes.grid(alpha=0.3)


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
        **as_dict(splits, pair.fitted, fitted_on, resamples=resamples, seed=seed),
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


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Both tables, and how they were measured."""
    first = Rows(HEADS, _rows(result), "Calibration")
    second = Rows(METHOD_HEADS, _method_rows(result), "Methods")
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
