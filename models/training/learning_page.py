"""The learning curve as a picture, and its section of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.markdown import commands, number, table

MEASURE = "cpm"


def save_curves(path: Path, result: Mapping[str, Any]) -> None:
    """Draws CPM on validation over patients, and over the minutes of each run; writes a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    data, time = figure.subplots(1, 2)
    runs = result["runs"]
    patients = [run["patients"] for run in runs]
    for key, name in ((MEASURE, "CPM"), ("at_8", "sensitivity at 8 false positives")):
        data.plot(patients, [run["log"][-1][key] for run in runs], "o-", label=name)
    data.legend(loc="lower right")
    data.set_xscale("log", base=2)
    data.set_xticks(patients, [str(count) for count in patients])
    data.set_xlabel(f"training patients, {result['minutes']:g} minutes each")
    for run in runs:
        _over_time(time, run["log"], f"{run['patients']} patients")
    for run in result["longer"]:
        _over_time(time, run["log"], f"{run['name']}, from trained weights")
    time.set_xlabel("minutes of training")
    time.legend(loc="lower right")
    data.set_ylabel("on validation")
    time.set_ylabel("CPM on validation")
    for axes in (data, time):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _over_time(axes: Any, log: list[dict[str, float]], name: str) -> None:
    axes.plot([at["minutes"] for at in log], [at[MEASURE] for at in log], marker=".", label=name)


def section(found: dict[str, Any]) -> str:
    """The page's section on the learning curve, from `learning.json`; empty if there is none."""
    result = found.get("learning")
    if result is None:
        return ""
    heads = ["patients", "nodules", "CPM", "at 1", "at 2", "at 8"]
    rows = [
        [run["patients"], run["nodules"],
         *(number(run["log"][-1][key]) for key in (MEASURE, "at_1", "at_2", "at_8"))]
        for run in result["runs"]
    ]  # fmt: skip
    one = 100 / result["val_nodules"]
    return (
        "## What would help: more patients, or more time\n\n"
        f"The screening network from nothing, {result['minutes']:g} minutes on one core for each "
        f"part of the training patients (whole scans and phantoms the same), judged on "
        f"{result['val_nodules']} validation nodules and {result['val_scans']} whole scan(s), one "
        f"view; one nodule is {one:.1f} points.\n\n{table(heads, rows)}\n"
        "![CPM over patients, and over time](results/learning.png)\n"
        + commands(found, "learning")
    )  # fmt: skip
