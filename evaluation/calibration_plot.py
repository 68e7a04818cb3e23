"""Reliability diagrams as a chart: one panel per reader and split, before and after the fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.calibration import EVEN
from evaluation.calibration_result import READERS
from evaluation.plot import save_chart
from models.charts import new_figure

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
    """Writes the chart as PNG; errors as `evaluation.plot.save_chart`."""
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
