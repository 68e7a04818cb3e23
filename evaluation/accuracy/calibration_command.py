"""``overread-eval calibration``: how far the scores of edge and cloud are probabilities.

Each reader before and after the fit, other methods, and reliability diagrams as a chart.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import RESAMPLES
from evaluation.accuracy.calibration import (
    EVEN,
    METHODS,
    Fit,
    at_prior,
    brier,
    class_weights,
    cross_validated,
    ece_interval,
    log_loss,
    reliability,
)
from evaluation.accuracy.calibration_cases import (
    Candidates,
    Readers,
    Row,
    cube_rows,
    gathered,
    scan_rows,
)
from evaluation.accuracy.data import read_annotations, read_cubes
from evaluation.accuracy.nodules import save_chart
from evaluation.accuracy.scores import Fitted, calibrated
from evaluation.accuracy.truth import UNKNOWN, scan_name, scans_of_splits
from evaluation.common import cli
from evaluation.common.readers import open_screening, open_second
from imaging.volume import FloatArray
from models.charts import new_figure
from models.extra import require
from models.markdown import Rows, interval

READERS = ("edge", "cloud", "merged")
COLOURS = {"before": "tab:gray", "after": "tab:blue"}
PRIOR = (
    "Class prior 0.5: nodules and false candidates weigh the same, as in the fit. As found: each"
    " candidate counts once, and scores are moved to the share of nodules in the fitting split."
    " Before: the networks' own logits, for merged their mean."
)


def calibration_command(
    data: cli.Data,
    scans: cli.Scans,
    truth: cli.Marks,
    more_scans: cli.MoreScans = None,
    fitted_on: Annotated[str, typer.Option(metavar="NAME", help="Split of the fit.")] = "val",
    unseen: Annotated[str, typer.Option(metavar="NAME", help="Split not in the fit.")] = "test",
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    limit: cli.Limit = 0,
    plot: cli.Plot = None,
    resamples: cli.Resamples = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of folds and bootstrap.")] = 0,
    as_json: cli.Json = False,
) -> None:
    """Reliability and calibration error before and after the fit, and with other methods."""
    require("sklearn")
    readers = Readers(open_screening(model), open_second(cloud_model))
    folders, known = cli.known_scans(scans, more_scans, truth)
    splits = {}
    for split in (fitted_on, unseen):
        of_split = scans_of_splits(folders, known, (split,))
        cubes = read_cubes(data, (split,))[: limit or None]
        annotations, rows = read_annotations(data, split), list[Row]()
        for cube in cli.each(cubes, f"cubes of {split}"):
            rows += cube_rows(readers, cube, annotations.get(cube.name, ()))
        for folder in cli.each(of_split, f"scans of {split}"):
            rows += scan_rows(readers, folder, known.get(scan_name(folder), UNKNOWN))
        splits[split] = gathered(rows)
    result: dict[str, Any] = {
        "edge_model": readers.screener.name,
        "cloud_model": readers.second.name,
        **as_dict(splits, readers.fitted, fitted_on, resamples=resamples, seed=seed),
    }
    if plot is not None:
        save_chart(draw_reliability(result), plot)
    cli.show(result, as_json, *tables(result))


def before(of: Candidates) -> dict[str, FloatArray]:
    """Return the scores without any fit."""
    logits = {"edge": of.edge, "cloud": of.cloud, "merged": (of.edge + of.cloud) / 2}
    return {name: calibrated(logit) for name, logit in logits.items()}


def after(of: Candidates, fitted: Fitted) -> dict[str, FloatArray]:
    """Return the scores as they are shipped."""
    edge, merged = fitted.scores(of.edge, of.cloud)
    return {"edge": edge, "cloud": calibrated(of.cloud, fitted.cloud), "merged": merged}


def as_dict(
    splits: Mapping[str, Candidates], fitted: Fitted, fit_split: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the figures of every split and reader; ``fit_split`` is the split of the fit."""
    learnt = splits[fit_split]
    found = float(learnt.nodule.mean())

    def figures(score: FloatArray, of: Candidates, prior: float) -> dict[str, Any]:
        weight = class_weights(of.nodule, prior)
        bins = reliability(score, of.nodule, weight)
        error = ece_interval(score, of.nodule, of.group, prior, resamples=resamples, seed=seed)
        return {
            "ece": error.as_dict(),
            "log_loss": log_loss(score, of.nodule, weight),
            "brier": brier(score, of.nodule, weight),
            "bins": {"score": bins.score.round(5).tolist(), "share": bins.share.round(5).tolist()},
        }

    def before_and_after(of: Candidates, reader: str) -> dict[str, Any]:
        raw, shipped = before(of)[reader], after(of, fitted)[reader]
        return {
            "before": figures(raw, of, EVEN),
            "after": figures(shipped, of, EVEN),
            "before_as_found": figures(raw, of, found),
            "after_as_found": figures(at_prior(shipped, found), of, found),
        }

    def by_method(fit: Fit, reader: str, of: Candidates) -> dict[str, Any]:
        """Cross-validate on the split of the fit, or fit on all of it for another."""
        logit = _logit_of(learnt, fitted, reader)
        if of is learnt:
            score = cross_validated(fit, logit, learnt.nodule, learnt.group, seed)
        else:
            score = fit(logit, learnt.nodule)(_logit_of(of, fitted, reader))
        return figures(score, of, EVEN)

    return {
        "prior": PRIOR,
        "fitted_on": fit_split,
        "prior_as_found": found,
        "splits": {
            name: {
                "candidates": int(of.nodule.size),
                "nodules": int(of.nodule.sum()),
                "groups": int(np.unique(of.group).size),
                "readers": {reader: before_and_after(of, reader) for reader in READERS},
            }
            for name, of in splits.items()
        },
        "methods": {
            reader: {
                method: {name: by_method(fit, reader, of) for name, of in splits.items()}
                for method, fit in METHODS.items()
            }
            for reader in READERS
        },
    }


def _logit_of(of: Candidates, fitted: Fitted, reader: str) -> FloatArray:
    """Return the logit that a method is fitted on: a network's own, or of the merged score."""
    if reader != "merged":
        return of.edge if reader == "edge" else of.cloud
    merged = np.clip(after(of, fitted)["merged"], 1e-9, 1 - 1e-9)
    return np.asarray(np.log(merged / (1 - merged)))


def draw_reliability(result: Mapping[str, Any]) -> Any:
    """Draw a row of panels for each split, a column for each reader; return the figure."""
    splits = result["splits"]
    figure = new_figure(3.8 * len(READERS), 3.8 * len(splits) + 0.6)
    rows = figure.subplots(len(splits), len(READERS), squeeze=False)
    for row, (split, found) in zip(rows, splits.items(), strict=True):
        for axes, reader in zip(row, READERS, strict=True):
            _panel(axes, f"{reader}, {split}", found["readers"][reader])
    figure.suptitle(f"Reliability at class prior {EVEN:g}, fitted on {result['fitted_on']}")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


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


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Return both tables, and how they were measured."""
    keys = ("before", "after", "before_as_found", "after_as_found")
    heads = ["reader", "split", "ECE before", "ECE after", "ECE before, as found",
             "ECE after, as found"]  # fmt: skip
    cells = [
        [reader, split, *(interval(found[key]["ece"]) for key in keys)]
        for split, of in result["splits"].items()
        for reader, found in of["readers"].items()
    ]
    rows = []
    for reader, by_method in result["methods"].items():
        shipped = {split: of["readers"][reader]["after"] for split, of in result["splits"].items()}
        for method, by_split in {"as shipped": shipped, **by_method}.items():
            rows += [
                [reader, method, split, interval(one["ece"]), f"{one['log_loss']:.3f}",
                 f"{one['brier']:.3f}"]
                for split, one in by_split.items()
            ]  # fmt: skip
    methods = Rows(["reader", "method", "split", "ECE", "log loss", "Brier"], rows, "Methods")
    split = result["fitted_on"]
    remark = (
        f"Methods at prior 0.5: on {split} cross-validated over patients, on the other splits"
        f" fitted on all of {split}. As shipped, {split} is the split of the fit. For merged a"
        " method is fitted on the shipped merged score."
    )
    return [Rows(heads, cells, "Calibration"), methods, result["prior"], remark]
