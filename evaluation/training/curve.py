"""Learning curves: a figure on validation after each round of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.markdown import number
from models.runtime.errors import NoWeights
from models.training.run_folder import LOG, read_log

SHOWN = 12
"""The most rounds of a run in the table."""


def learning_curve(run: Path, figure: str) -> dict[str, Any]:
    """Return what the log of a run says of a ``figure``, such as ``cpm``, round by round.

    ``gain`` is by how much the mean of the last quarter of the rounds is above that of the quarter
    before, ``sd`` the standard deviation of the last quarter: a gain below it shows the end.
    Each is None where rounds are too few.

    Raises:
        NoWeights: the folder has no log with that figure.
    """
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


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return some rounds of each run; what the last quarter gained stands beside its last."""
    found = []
    for run in result["runs"]:
        rounds = run["rounds"]
        chosen = np.unique(np.linspace(0, len(rounds) - 1, SHOWN).round().astype(int))
        found += [{"run": run["run"], **rounds[i], "gain": ""} for i in chosen]
        found[-1]["gain"] = f"{number(run['gain'])} (sd {number(run['sd'])})"
    return found


def draw(runs: Sequence[Mapping[str, Any]], figure: str, png: Path) -> None:
    """Draw the figure over the steps, a line for each run."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = picture.subplots()
    for run in runs:
        points = [(one["steps"], one["value"]) for one in run["rounds"]]
        axes.plot(*zip(*points, strict=True), ".-", label=run["run"], alpha=0.8)
    axes.set(xlabel="steps", ylabel=f"{figure}, validation")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(png)
