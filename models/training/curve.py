"""Learning curves: the figures on validation after each round of runs, as a table and a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.markdown import Rows, number
from models.runtime.errors import NoWeights
from models.training.run_folder import LOG, read_log

SHOWN = 12
"""The most rounds of a run in the table."""


def learning_curve(runs: Sequence[Path], figure: str) -> dict[str, Any]:
    """Return what the logs of the runs in these folders say of a ``figure``, such as ``cpm``.

    ``gain`` is by how much the mean of the last quarter of the rounds is above that of the quarter
    before, ``sd`` the standard deviation of the last quarter: a gain below it shows the end.
    Each is None where rounds are too few.

    Raises:
        NoWeights: a folder has no log with that figure.
    """
    return {"figure": figure, "runs": [_of(run, figure) for run in runs]}


def _of(run: Path, figure: str) -> dict[str, Any]:
    rounds = [
        {"steps": one["steps"], "core_hours": one["core_hours"], "value": one[figure]}
        for one in read_log(run)
        if isinstance(one.get(figure), int | float) and np.isfinite(one[figure])
    ]
    if not rounds:
        raise NoWeights(f"{run / LOG}: no round with {figure}; expected the log of a training run")
    values = np.array([one["value"] for one in rounds])
    part = max(len(values) // 4, 1)
    last, before = values[-part:], values[-2 * part : -part]
    gain = float(last.mean() - before.mean()) if len(before) else None
    sd = float(last.std()) if part > 1 else None
    return {"run": run.name, "rounds": rounds, "gain": gain, "sd": sd}


def curve_table(found: Mapping[str, Any]) -> str:
    """Return some rounds of each run, and what the last quarter gained, in Markdown."""
    cells = []
    for run in found["runs"]:
        rounds = run["rounds"]
        chosen = np.unique(np.linspace(0, len(rounds) - 1, SHOWN).round().astype(int))
        for one in (rounds[i] for i in chosen):
            steps, hours = one["steps"], number(one["core_hours"], 2)
            cells.append([run["run"], steps, hours, number(one["value"]), ""])
        cells[-1][-1] = f"{number(run['gain'])} (sd {number(run['sd'])})"
    heads = "run", "steps", "core-hours", found["figure"], "gain of the last quarter of the rounds"
    return Rows(heads, cells).markdown()


def draw_curve(found: Mapping[str, Any], png: Path) -> None:
    """Draw the figure over the steps, a line for each run."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for run in found["runs"]:
        points = [(one["steps"], one["value"]) for one in run["rounds"]]
        axes.plot(*zip(*points, strict=True), ".-", label=run["run"], alpha=0.8)
    axes.set_xlabel("steps")
    axes.set_ylabel(f"{found['figure']}, validation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(png)
