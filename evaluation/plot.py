"""An FROC curve as a chart: false positives per scan on a log scale, sensitivity upwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.errors import MissingData
from evaluation.froc import RATES, Curve
from evaluation.tables import rate_name
from models.charts import new_figure, save_png


def draw_curve(curve: Curve, title: str) -> Any:
    """The figure, with the seven rates as grid lines."""
    figure = new_figure(9, 6.4)
    axes = figure.subplots()
    shown = curve.false_per_scan <= RATES[-1]
    # The last threshold within the axes holds up to their end; zero has no place on a log scale.
    rate = np.append(curve.false_per_scan[shown], RATES[-1])
    sensitivity = np.append(curve.sensitivity[shown], curve.sensitivity[shown][-1])
    axes.step(np.maximum(rate, RATES[0]), sensitivity, where="post", linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [rate_name(rate) for rate in RATES])
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0, 1.01), title=f"FROC curve, {title}")
    axes.set(xlabel="false positives per scan", ylabel="sensitivity")
    axes.grid(alpha=0.3)
    return figure


def save_curve(path: Path, curve: Curve, title: str) -> None:
    """Writes the chart as PNG; errors as `save_chart`."""
    save_chart(draw_curve(curve, title), path)


def save_chart(figure: Any, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    try:
        save_png(figure, path)
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error
