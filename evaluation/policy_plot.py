"""Pareto plots of policies: what they find against what it costs, a panel for each trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.errors import MissingData
from evaluation.policy_ratio import OURS, VERDICTS
from imaging.volume import UInt8Array

Row = Mapping[str, Any]
Colour = tuple[int, int, int]

PANEL = (340, 420)
"""Height and width of one, pixels."""

COLUMNS = 3
TICKS = 5
LEGEND = 70
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 28, 34, 46
_BLACK, _GREY = (0, 0, 0), (225, 225, 225)

COLOURS: dict[str, Colour] = {
    "edge only": (120, 120, 120),
    "cloud only": (60, 60, 200),
    "fixed threshold": (200, 120, 30),
    "Sedna threshold": (40, 140, 240),
    "Sedna entropy": (30, 190, 200),
    "ours, verdicts only": (90, 200, 90),
    "ours": (40, 150, 40),
    "oracle": (160, 40, 140),
}
"""By kind; BGR. What was chosen in hindsight is drawn hollow."""


@dataclass(frozen=True)
class Axis:
    """One figure of a row, its unit, and whether the scale is logarithmic."""

    key: str
    words: str
    share: float = 1.0
    logarithmic: bool = False
    floor: float = -math.inf

    def of(self, row: Row) -> float:
        """Where the row stands along it."""
        value = float(row[self.key]) * self.share
        return math.log10(max(value, 1e-3)) if self.logarithmic else value

    def tick(self, place: float) -> str:
        """The value at a place, in words."""
        return f"{10**place if self.logarithmic else place:.3g}"

    def span(self, rows: Sequence[Row]) -> tuple[float, float]:
        """A little more than the rows need."""
        values = [self.of(row) for row in rows]
        margin = 0.06 * (max(values) - min(values)) or 0.05
        return max(self.floor, min(values) - margin), max(values) + margin


FOUND = Axis("sensitivity", "found, % of nodules", 100.0, floor=0.0)
FALSE = Axis("false_positives_per_scan", "false alarms a scan", floor=0.0)
ROIS = Axis("rois_per_scan", "ROIs a scan", floor=0.0)
BYTES = Axis("bytes_per_scan", "kB a scan", 1e-3, floor=0.0)
P95 = Axis("p95_ms", "p95 of the answer, s", 1e-3, logarithmic=True)

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
    panels = [_panel(one["trace"], one["policies"], x, y) for one in result["traces"]]
    blank = np.full((*PANEL, 3), 255, np.uint8)
    panels += [blank] * (-len(panels) % COLUMNS)
    rows = [np.hstack(panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    return np.asarray(np.vstack([*rows, _legend(rows[0].shape[1])]), np.uint8)


def _panel(name: str, rows: Sequence[Row], x: Axis, y: Axis) -> UInt8Array:
    picture = np.full((*PANEL, 3), 255, np.uint8)
    along, up = x.span(rows), y.span(rows)
    place = _placing(along, up)
    for right, above in zip(np.linspace(*along, TICKS), np.linspace(*up, TICKS), strict=True):
        cv2.line(picture, place(right, up[0]), place(right, up[1]), _GREY, 1)
        cv2.line(picture, place(along[0], above), place(along[1], above), _GREY, 1)
        _write(picture, x.tick(right), place(right, up[0]), (-12, 16))
        _write(picture, y.tick(above), place(along[0], above), (-42, 4))
    sweep = sorted((x.of(row), y.of(row)) for row in rows if "sweep" in row["policy"])
    if sweep:
        line = np.array([place(*point) for point in sweep], np.int32)
        cv2.polylines(picture, [line], False, COLOURS["fixed threshold"], 1, cv2.LINE_AA)
    for row in rows:
        _dot(picture, place(x.of(row), y.of(row)), row)
    _write(picture, f"{name}: {y.words}", (_LEFT, _TOP), (0, -14))
    _write(picture, x.words, (PANEL[1] // 2, PANEL[0]), (-50, -10))
    return picture


def _dot(picture: UInt8Array, at: tuple[int, int], row: Row) -> None:
    """Large for ours and the oracle, hollow for what nobody could have known."""
    size = 6 if row["kind"] in (OURS, VERDICTS, "oracle") else 4
    filled = 1 if "hindsight" in row["policy"] else cv2.FILLED
    cv2.circle(picture, at, size, COLOURS[row["kind"]], filled, cv2.LINE_AA)


def _placing(
    along: tuple[float, float], up: tuple[float, float]
) -> Callable[[float, float], tuple[int, int]]:
    height, width = PANEL

    def place(x: float, y: float) -> tuple[int, int]:
        right = (x - along[0]) / (along[1] - along[0]) * (width - _LEFT - _RIGHT)
        above = (y - up[0]) / (up[1] - up[0]) * (height - _TOP - _BOTTOM)
        return round(_LEFT + right), round(height - _BOTTOM - above)

    return place


def _legend(width: int) -> UInt8Array:
    picture = np.full((LEGEND, width, 3), 255, np.uint8)
    step = width // len(COLOURS)
    for i, (kind, colour) in enumerate(COLOURS.items()):
        cv2.circle(picture, (20 + i * step, LEGEND // 2), 6, colour, -1, cv2.LINE_AA)
        _write(picture, kind, (20 + i * step, LEGEND // 2), (12, 5))
    return picture


def _write(picture: UInt8Array, text: str, at: tuple[int, int], shift: tuple[int, int]) -> None:
    place = (at[0] + shift[0], at[1] + shift[1])
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _BLACK, 1, cv2.LINE_AA)
