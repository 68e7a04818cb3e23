"""Reliability diagrams as a picture: one panel a reader and split, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.calibration_result import READERS
from evaluation.errors import MissingData
from imaging.volume import UInt8Array

_PANEL = 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 40, 14, 40
_BLACK, _LINE, _GREY, _BLUE = (0, 0, 0), (225, 225, 225), (150, 150, 150), (180, 90, 20)


def draw_reliability(result: Mapping[str, Any]) -> UInt8Array:
    """uint8 ``(height, width, 3)`` BGR: a row of panels for each split, grey before, blue after."""
    rows = [
        np.hstack([_panel(f"{reader}, {split}", found["readers"][reader]) for reader in READERS])
        for split, found in result["splits"].items()
    ]
    return np.asarray(np.vstack(rows), np.uint8)


def save_reliability(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the picture as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    _, png = cv2.imencode(".png", draw_reliability(result))
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


def _panel(title: str, reader: Mapping[str, Any]) -> UInt8Array:
    picture = np.full((_PANEL, _PANEL, 3), 255, np.uint8)
    for quarter in range(5):
        at = quarter / 4
        cv2.line(picture, _point(at, 0), _point(at, 1), _LINE, 1)
        cv2.line(picture, _point(0, at), _point(1, at), _LINE, 1)
        _write(picture, f"{at:g}", _point(at, 0), (-8, 16))
        _write(picture, f"{at:g}", _point(0, at), (-32, 4))
    cv2.line(picture, _point(0, 0), _point(1, 1), _BLACK, 1, cv2.LINE_AA)
    for key, colour in (("before", _GREY), ("after", _BLUE)):
        _curve(picture, reader[key]["bins"], colour)
    errors = [f"{key} {reader[key]['ece']['value']:.3f}" for key in ("before", "after")]
    _write(picture, title, (_LEFT, 0), (0, 16))
    _write(picture, f"ECE {', '.join(errors)}", (_LEFT, 0), (0, 32))
    _write(picture, "score; upwards: share of nodules", (_LEFT, _PANEL), (0, -6))
    return picture


def _curve(
    picture: UInt8Array, bins: Mapping[str, Sequence[float]], colour: tuple[int, int, int]
) -> None:
    points = [_point(x, y) for x, y in zip(bins["score"], bins["share"], strict=True)]
    cv2.polylines(picture, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, point, 3, colour, -1, cv2.LINE_AA)


def _point(x: float, y: float) -> tuple[int, int]:
    width, height = _PANEL - _LEFT - _RIGHT, _PANEL - _TOP - _BOTTOM
    return round(_LEFT + x * width), round(_PANEL - _BOTTOM - y * height)


def _write(picture: UInt8Array, text: str, at: tuple[int, int], shift: tuple[int, int]) -> None:
    place = (at[0] + shift[0], at[1] + shift[1])
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, _BLACK, 1, cv2.LINE_AA)
