"""Pareto charts of policies: sensitivity against cost, with one panel for links that are alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.accuracy.nodules import save_chart
from evaluation.errors import MissingData
from evaluation.policies.compare import ENTROPY, FIXED, HINDSIGHT, OURS, PAIR, TUNED, VERDICTS, Row
from models.charts import log_x, new_figure

COLUMNS = 3
ALIKE = 0.02
"""Links share a panel where no marker moves by more than this share of it."""

MARKERS = {
    "edge only": ("#787878", "s", 15),
    TUNED: ("#3c3c3c", "D", 12),
    "cloud only": ("#c83c3c", "x", 15),
    FIXED: ("#1e78c8", "^", 12),
    HINDSIGHT: ("#1e78c8", "^", 7),
    PAIR: ("#5a3cc8", "v", 9),
    "Sedna threshold": ("#f08c28", "+", 14),
    ENTROPY: ("#c8aa1e", (8, 2, 0), 12),
    VERDICTS: ("#5ac85a", "o", 9),
    OURS: ("#146e14", "o", 5),
    "oracle": ("#8c28a0", ".", 5),
}
"""Colour, outline and size in points by kind; all stay visible one upon the other."""

SCALES: dict[str, Any] = {"linear": np.asarray, "log": np.log, "asinh": np.arcsinh}
"""Position of a value on a scale of matplotlib; asinh is a log scale that holds zero."""


@dataclass(frozen=True)
class Axis:
    """One figure of a row as an axis: in this unit (``factor`` times the figure), on this scale."""

    key: str
    name: str
    unit: str = ""
    factor: float = 1.0
    scale: str = "linear"
    ticks: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Return the name, with the unit if there is one."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def of(self, row: Row) -> float:
        """Return the figure in the axis's unit."""
        return float(row[self.key]) * self.factor

    def positions(self, rows: Sequence[Row]) -> Any:
        """Return the positions of rows along the axis, in any unit."""
        return SCALES[self.scale](np.array([self.of(row) for row in rows]))


FOUND = Axis("sensitivity", "nodules found", "%", 100.0)
FALSE = Axis("false_positives_per_scan", "false positives per scan")
ROIS = Axis("rois_per_scan", "ROIs per scan", scale="asinh", ticks=(0, 1, 3, 10, 30))
BYTES = Axis(
    "bytes_per_scan", "data sent per scan", "kB", 1e-3, "asinh", (0, 1, 10, 100, 1000, 10000)
)
P95 = Axis("p95_ms", "answer time, 95th percentile", "s", 1e-3, "log")

PLOTS = {
    "rois": (ROIS, FOUND),
    "bytes": (BYTES, FOUND),
    "p95": (P95, FOUND),
    "false": (ROIS, FALSE),
}
"""By name: the x axis and the y axis."""


def save_fronts(result: Mapping[str, Any], folder: Path) -> None:
    """Write ``policies_NAME.png`` for each of `PLOTS`.

    Raises:
        MissingData: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingData(folder, f"cannot be written ({error})") from error
    for name in PLOTS:
        save_chart(draw(result, name), folder / f"policies_{name}.png")


def draw(result: Mapping[str, Any], name: str) -> Any:
    """Return the figure of one of `PLOTS`: all panels, and a legend below them."""
    x, y = PLOTS[name]
    panels = panels_of(result["traces"], x, y)
    lines = max(1, -(-len(panels) // COLUMNS))
    figure = new_figure(4.2 * COLUMNS, 3.4 * lines + 1.3)
    grid = figure.subplots(lines, COLUMNS, squeeze=False).flat
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, rows) in zip(grid, panels, strict=False):
        draw_panel(axes, rows, x, y)
        axes.set_title(title)
    title = f"{y.name} against {x.name} (links with equal results share a panel)"
    figure.suptitle(title[0].upper() + title[1:])
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_panel(axes: Any, rows: Sequence[Row], x: Axis, y: Axis) -> None:
    """Draw a marker for each policy, and a line through all single thresholds."""
    swept = [row for row in rows if row["policy"] == FIXED or "sweep" in row["policy"]]
    line = np.reshape(sorted((x.of(row), y.of(row)) for row in swept), (-1, 2)).T
    axes.plot(*line, color=MARKERS[FIXED][0], linewidth=1, label="fixed threshold, any")
    for row in rows:
        if "sweep" not in row["policy"]:
            name = row["policy"] if row["policy"] in MARKERS else row["kind"]
            colour, shape, size = MARKERS[name]
            style = {"linestyle": "", "markeredgewidth": 2, "fillstyle": "none"}
            axes.plot(x.of(row), y.of(row), marker=shape, markersize=size, color=colour,
                      label=name, **style)  # fmt: skip
    if x.scale == "log":
        log_x(axes, (1, 3))
    else:
        axes.set_xscale(x.scale)
        axes.set_xticks(x.ticks, [f"{tick:g}" for tick in x.ticks])
        axes.minorticks_off()
    axes.margins(0.08)
    axes.set(xlabel=x.label, ylabel=y.label)
    axes.grid(alpha=0.3)


def panels_of(
    traces: Sequence[Mapping[str, Any]], x: Axis, y: Axis
) -> list[tuple[str, Sequence[Row]]]:
    """Return title and rows of each panel: one for each group of links that are alike.

    A link without a difference between policies on one of the axes has no panel.
    """
    groups: list[tuple[list[str], Sequence[Row]]] = []
    for trace in traces:
        rows = trace["policies"]
        if any(np.ptp(axis.positions(rows)) == 0 for axis in (x, y)):
            continue
        same = next((names for names, others in groups if _alike(others, rows, x, y)), None)
        if same is None:
            groups.append(([trace["trace"]], rows))
        else:
            same.append(trace["trace"])
    return [(", ".join(names), rows) for names, rows in groups]


def _alike(first: Sequence[Row], second: Sequence[Row], x: Axis, y: Axis) -> bool:
    """Return whether all markers of the second have their position in the panel of the first."""
    return all(
        np.abs(axis.positions(first) - axis.positions(second)).max()
        <= ALIKE * np.ptp(axis.positions(first))
        for axis in (x, y)
    )
