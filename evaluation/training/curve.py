"""Learning curves: a figure on validation after each round of a run."""

from pathlib import Path
from typing import Any

import numpy as np

from models.runtime.errors import NoWeights
from models.training.run_folder import LOG, read_log

SHOWN = 6
"""The most rounds of a run in the table."""


def learning_curve(run: Path, figure: str) -> list[dict[str, Any]]:
    """Return some rounds of a run by what its log says of a ``figure``, such as ``cpm``.

    In the last one, ``gain`` is by how much the mean of the last quarter of all rounds is above
    that of the quarter before, ``sd`` the standard deviation of the last quarter: a gain below it
    shows the end. Each is None where rounds are too few.

    Raises:
        NoWeights: the folder has no log with that figure.
    """
    rounds = [
        {"run": run.name, "steps": entry["steps"], "core_hours": entry["core_hours"],
         "value": entry[figure], "gain": None, "sd": None}
        for entry in read_log(run)
        if isinstance(entry.get(figure), int | float) and np.isfinite(entry[figure])
    ]  # fmt: skip
    if not rounds:
        raise NoWeights(f"{run / LOG}: no round with {figure}; expected the log of a training run")
    values = np.array([one["value"] for one in rounds])
    part = max(len(values) // 4, 1)
    last, before = values[-part:], values[-2 * part : -part]
    rounds[-1]["gain"] = float(last.mean() - before.mean()) if len(before) else None
    rounds[-1]["sd"] = float(last.std()) if part > 1 else None
    chosen = np.unique(np.linspace(0, len(rounds) - 1, SHOWN).round().astype(int))
    return [rounds[i] for i in chosen]
