"""One panel of a Pareto plot: axes with round ticks, and markers that do not hide one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from evaluation.policy_ratio import ENTROPY, FIXED, OURS, PAIR, TUNED, VERDICTS
from imaging.volume import UInt8Array

Row = Mapping[str, Any]

PANEL = (340, 420)
"""Height and width of one, pixels."""

TICKS = 5
STEPS = (1, 1.5, 2, 3, 5, 7)
LEGEND = 84
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 28, 50, 46
_BLACK, _GREY = (0, 0, 0), (225, 225, 225)
_APART = 0.11


@dataclass(frozen=True)
class Marker:
    """How a kind is drawn: BGR, an outline of `cv2` or None for a disc, and its size in pixels."""

    colour: tuple[int, int, int]
    shape: int | None
    size: int


MARKERS = {
    "edge only": Marker((120, 120, 120), cv2.MARKER_SQUARE, 24),
    TUNED: Marker((60, 60, 60), cv2.MARKER_DIAMOND, 24),
    "cloud only": Marker((60, 60, 200), cv2.MARKER_TILTED_CROSS, 22),
    FIXED: Marker((200, 120, 30), cv2.MARKER_TRIANGLE_UP, 20),
    PAIR: Marker((200, 60, 90), cv2.MARKER_TRIANGLE_DOWN, 16),
    "Sedna threshold": Marker((40, 140, 240), cv2.MARKER_CROSS, 24),
    ENTROPY: Marker((30, 170, 200), cv2.MARKER_STAR, 20),
    VERDICTS: Marker((90, 200, 90), None, 7),
    OURS: Marker((20, 110, 20), None, 4),
    "oracle": Marker((160, 40, 140), None, 2),
}
"""By kind, outlines of different shape and size, so that one shows through the other."""


@dataclass(frozen=True)
class Axis:
    """One figure of a row and its unit, along a scale: plain, ``root`` or ``log``."""

    key: str
    words: str
    share: float = 1.0
    scale: str = ""
    floor: float = -math.inf

    def of(self, row: Row) -> float:
        """Where the row stands along it."""
        return self._place(float(row[self.key]) * self.share)

    def span(self, rows: Sequence[Row]) -> tuple[float, float]:
        """A little more than the rows need."""
        values = [self.of(row) for row in rows]
        margin = 0.06 * (max(values) - min(values)) or 0.05
        return max(self.floor, min(values) - margin), max(values) + margin

    def ticks(self, span: tuple[float, float]) -> list[tuple[float, str]]:
        """Places within the span and their values in words, far enough from one another."""
        if not self.scale:
            return [(float(place), f"{place:.4g}") for place in np.linspace(*span, TICKS)]
        steps = (step * 10.0**power for power in range(-3, 6) for step in STEPS)
        kept: list[tuple[float, str]] = []
        for value in (0.0, *steps):
            place = self._place(value)
            far = not kept or place - kept[-1][0] >= _APART * (span[1] - span[0])
            if span[0] <= place <= span[1] and far:
                kept.append((place, f"{value:g}"))
        return kept

    def _place(self, value: float) -> float:
        if self.scale == "root":
            return math.sqrt(value)
        return math.log10(max(value, 1e-3)) if self.scale else value


def panel(title: str, rows: Sequence[Row], x: Axis, y: Axis) -> UInt8Array:
    """One of them, uint8 ``(height, width, 3)`` BGR."""
    picture = np.full((*PANEL, 3), 255, np.uint8)
    along, up = x.span(rows), y.span(rows)
    place = _placing(along, up)
    for right, words in x.ticks(along):
        cv2.line(picture, place(right, up[0]), place(right, up[1]), _GREY, 1)
        _write(picture, words, place(right, up[0]), (-12, 16))
    for above, words in y.ticks(up):
        cv2.line(picture, place(along[0], above), place(along[1], above), _GREY, 1)
        _write(picture, words, place(along[0], above), (-42, 4))
    line = sorted(place(x.of(row), y.of(row)) for row in rows if _on_line(row))
    if line:
        cv2.polylines(picture, [np.array(line, np.int32)], False, MARKERS[FIXED].colour, 1)
    for row in rows:
        if "sweep" not in row["policy"]:
            _mark(picture, place(x.of(row), y.of(row)), row)
    _write(picture, title, (_LEFT, 0), (0, 20))
    _write(picture, y.words, (_LEFT, 0), (0, 38))
    _write(picture, x.words, (PANEL[1] // 2, PANEL[0]), (-50, -10))
    return picture


def legend(width: int) -> UInt8Array:
    """All markers with their kinds, in two rows."""
    picture = np.full((LEGEND, width, 3), 255, np.uint8)
    half = math.ceil(len(MARKERS) / 2)
    for i, kind in enumerate(MARKERS):
        at = (20 + i % half * (width // half), LEGEND // 4 + i // half * (LEGEND // 2))
        _mark(picture, at, {"kind": kind, "policy": kind})
        _write(picture, kind, at, (18, 5))
    return picture


def _on_line(row: Row) -> bool:
    """The single thresholds: what was chosen, and those below it."""
    return row["policy"] == FIXED or "sweep" in row["policy"]


def _mark(picture: UInt8Array, at: tuple[int, int], row: Row) -> None:
    """Smaller for what nobody could have known."""
    marker = MARKERS[row["kind"]]
    if marker.shape is None:
        thick = 2 if row["kind"] in (VERDICTS, OURS) else cv2.FILLED
        cv2.circle(picture, at, marker.size, marker.colour, thick, cv2.LINE_AA)
        return
    size = marker.size // 2 if "hindsight" in row["policy"] else marker.size
    cv2.drawMarker(picture, at, marker.colour, marker.shape, size, 2, cv2.LINE_AA)


def _placing(
    along: tuple[float, float], up: tuple[float, float]
) -> Callable[[float, float], tuple[int, int]]:
    height, width = PANEL

    def place(x: float, y: float) -> tuple[int, int]:
        right = (x - along[0]) / (along[1] - along[0]) * (width - _LEFT - _RIGHT)
        above = (y - up[0]) / (up[1] - up[0]) * (height - _TOP - _BOTTOM)
        return round(_LEFT + right), round(height - _BOTTOM - above)

    return place


def _write(picture: UInt8Array, text: str, at: tuple[int, int], shift: tuple[int, int]) -> None:
    place = (at[0] + shift[0], at[1] + shift[1])
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _BLACK, 1, cv2.LINE_AA)
