"""Pareto plots of policies: what they find against what it costs, a panel for links alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.errors import MissingData
from evaluation.policy_panel import PANEL, Axis, Row, legend, panel
from imaging.volume import UInt8Array

COLUMNS = 3
ALIKE = 0.02
"""Links share a panel where no marker moves by more than this part of it."""

FOUND = Axis("sensitivity", "found, % of nodules", 100.0, floor=0.0)
FALSE = Axis("false_positives_per_scan", "false alarms a scan", floor=0.0)
ROIS = Axis("rois_per_scan", "ROIs a scan", scale="root", floor=0.0)
BYTES = Axis("bytes_per_scan", "kB a scan", 1e-3, scale="root", floor=0.0)
P95 = Axis("p95_ms", "p95 of the answer, s", 1e-3, scale="log")

PLOTS = {"rois": (ROIS, FOUND), "bytes": (BYTES, FOUND), "p95": (P95, FOUND),
         "false": (ROIS, FALSE)}  # fmt: skip
"""By name: what lies along, and what upwards."""


def save_fronts(result: Mapping[str, Any], folder: Path) -> None:
    """Writes ``policies_NAME.png`` for each of `PLOTS`.

    Raises:
        MissingData: the folder cannot be written.
    """
    for name in PLOTS:
        path, (_, png) = plot_path(folder, name), cv2.imencode(".png", draw(result, name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png.tobytes())
        except OSError as error:
            raise MissingData(path, f"cannot be written ({error})") from error


def plot_path(folder: Path, name: str) -> Path:
    """The file of one plot."""
    return folder / f"policies_{name}.png"


def draw(result: Mapping[str, Any], name: str) -> UInt8Array:
    """All panels and the legend of one of `PLOTS`, uint8 ``(height, width, 3)`` BGR."""
    x, y = PLOTS[name]
    panels = [panel(title, rows, x, y) for title, rows in panels_of(result["traces"], x, y)]
    blank = np.full((*PANEL, 3), 255, np.uint8)
    panels += [blank] * (-len(panels) % COLUMNS)
    rows = [np.hstack(panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    return np.asarray(np.vstack([*rows, legend(COLUMNS * PANEL[1])]), np.uint8)


def panels_of(
    traces: Sequence[Mapping[str, Any]], x: Axis, y: Axis
) -> list[tuple[str, Sequence[Row]]]:
    """What is drawn: a title and rows for each group of links alike.

    A link over which no policy costs more than another, or finds more, is left out.
    """
    groups: list[tuple[list[str], Sequence[Row]]] = []
    for trace in traces:
        rows = trace["policies"]
        if any(len({axis.of(row) for row in rows}) == 1 for axis in (x, y)):
            continue
        same = next((names for names, others in groups if _alike(others, rows, x, y)), None)
        if same is None:
            groups.append(([trace["trace"]], rows))
        else:
            same.append(trace["trace"])
    return [(", ".join(names), rows) for names, rows in groups]


def _alike(first: Sequence[Row], second: Sequence[Row], x: Axis, y: Axis) -> bool:
    """Whether no marker of the second would lie elsewhere in the panel of the first."""
    for axis in (x, y):
        low, high = axis.span(first)
        moved = [abs(axis.of(a) - axis.of(b)) for a, b in zip(first, second, strict=True)]
        if max(moved) > ALIKE * (high - low):
            return False
    return True
