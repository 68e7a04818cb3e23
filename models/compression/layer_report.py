"""What rounding costs, for people: tables, a plot, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SERIES = (("exact", "left exact", "o"), ("int8", "INT8", "."), ("int4", "INT4", "s"))


def show_layers(rows: Sequence[dict[str, Any]], plot: Path | None, as_json: bool) -> None:
    """Prints the rows of `models.compression.sensitivity.Layer`, and draws them."""
    if plot is not None:
        _draw(rows, plot)
    if as_json:
        print(json.dumps({"layers": list(rows)}, indent=1))
        return
    table = Table(title="difference from the float network, one layer changed at a time")
    for title in ("layer", "parameters", "exact", "INT8", "INT4"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in rows:
        figures = (f"{row[key]:.4f}" for key, *_ in SERIES)
        table.add_row(row["layer"], f"{row['parameters']:,}", *figures)
    Console().print(table)


def show_ranges(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Prints how far each way to find the ranges leaves INT8 from float."""
    if as_json:
        print(json.dumps({"ranges": list(rows)}, indent=1))
        return
    table = Table(title="difference from the float network on validation")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "ranges" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.4f}" for v in row.values()))
    Console().print(table)


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.24 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    for key, label, mark in SERIES:
        axes.plot([row[key] for row in rows], places, mark, label=label, alpha=0.8)
    axes.set_yticks(places, [f"{row['layer']}  {row['parameters']:,}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("difference from the float network's answers")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
