"""What is written on a tile of a picture: marks with their labels, letters, title and scale bar.

A tile is uint8 ``(400, 400, 3)`` in BGR, points are its ``(x, y)`` in pixels. Everything is drawn
in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2

from imaging.volume import UInt8Array

TILE_PX = 400
AMBER = (60, 190, 255)
LABEL_SIZE = 0.5
_PALE = (215, 225, 225)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Rect = tuple[float, float, float, float]
"""Left, top, right and bottom."""


def draw_mark(
    tile: UInt8Array,
    centre: tuple[float, float],
    radius: float,
    label: str,
    taken: Sequence[Rect],
) -> Rect:
    """A circle of ``radius`` pixels and four ticks outside it; its middle stays free.

    Returns the rectangle of the label, so that the next label keeps clear of it.
    """
    radius = max(radius, 4.0)
    _circle(tile, centre, radius)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        near, far = radius + 3, radius + 12
        start = (centre[0] + dx * near, centre[1] + dy * near)
        _line(tile, start, (centre[0] + dx * far, centre[1] + dy * far))
    rect = _label_place(centre, radius, label, taken)
    draw_text(tile, label, (rect[0], rect[3]), AMBER, LABEL_SIZE)
    return rect


def _label_place(
    centre: tuple[float, float], radius: float, label: str, taken: Sequence[Rect]
) -> Rect:
    """The first place around the circle where the label hits no other, else the first."""
    (width, height), _ = cv2.getTextSize(label, _FONT, LABEL_SIZE, 1)
    places = []
    for away in (radius + 5, radius + 20):
        for dx, dy in ((1, -1), (1, 1), (-1, 1), (-1, -1)):
            x = centre[0] + dx * away * 0.75 - (width if dx < 0 else 0)
            y = centre[1] + dy * away * 0.75 + (height if dy > 0 else 0)
            places.append((x, y - height, x + width, y))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(one: Rect, other: Rect) -> bool:
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart


def _circle(tile: UInt8Array, centre: tuple[float, float], radius: float) -> None:
    cv2.circle(tile, _fixed(centre), round(radius * 16), AMBER, 1, cv2.LINE_AA, shift=4)


def _line(tile: UInt8Array, start: tuple[float, float], end: tuple[float, float]) -> None:
    cv2.line(tile, _fixed(start), _fixed(end), AMBER, 1, cv2.LINE_AA, shift=4)


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    """A point with four fractional bits, pixel centres at integers, as OpenCV's ``shift=4``."""
    return round((point[0] - 0.5) * 16), round((point[1] - 0.5) * 16)


def draw_frame(tile: UInt8Array, letters: str, title: str) -> None:
    """The rim, the title, and the orientation letters: left, right, top, bottom."""
    left, right, top, bottom = tuple(letters)
    middle, edge = TILE_PX / 2, TILE_PX - 16
    draw_text(tile, left, (6, middle + 5), _PALE, 0.45)
    draw_text(tile, right, (edge, middle + 5), _PALE, 0.45)
    draw_text(tile, top, (middle - 5, 16), _PALE, 0.45)
    draw_text(tile, bottom, (middle - 5, TILE_PX - 8), _PALE, 0.45)
    draw_text(tile, title, (8, 18), _PALE, 0.45)
    cv2.rectangle(tile, (0, 0), (TILE_PX - 1, TILE_PX - 1), (40, 40, 40), 1)


def draw_bar(tile: UInt8Array, length_mm: int, scale: float) -> None:
    """A bar of that length at ``scale`` pixels per mm, with its length beside it."""
    length, y = round(length_mm * scale), TILE_PX - 12
    right = TILE_PX - 10
    for colour, thickness in (((0, 0, 0), 3), (_PALE, 1)):
        cv2.line(tile, (right - length, y), (right, y), colour, thickness)
        for x in (right - length, right):
            cv2.line(tile, (x, y - 4), (x, y + 4), colour, thickness)
    draw_text(tile, f"{length_mm} mm", (right - length, y - 8), _PALE, 0.4)


def draw_text(
    tile: UInt8Array, words: str, at: tuple[float, float], colour: tuple[int, int, int], size: float
) -> None:
    """Words at a baseline point, dark-edged so that they read on any grey, kept in the tile."""
    (width, height), _ = cv2.getTextSize(words, _FONT, size, 1)
    x = round(min(max(at[0], 2), TILE_PX - width - 3))
    y = round(min(max(at[1], height + 3), TILE_PX - 4))
    cv2.putText(tile, words, (x, y), _FONT, size, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(tile, words, (x, y), _FONT, size, colour, 1, cv2.LINE_AA)
