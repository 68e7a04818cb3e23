"""An FROC curve as a picture: false positives a scan on a log scale, sensitivity upwards."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from evaluation.errors import MissingData
from evaluation.froc import RATES, Curve
from evaluation.tables import rate_name
from imaging.volume import UInt8Array

_WIDTH, _HEIGHT = 900, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 60, 70
_BLACK, _GREY, _BLUE = (0, 0, 0), (220, 220, 220), (180, 90, 20)
_FIRST, _LAST = np.log2(RATES[0]), np.log2(RATES[-1])


def draw_curve(curve: Curve, title: str) -> UInt8Array:
    """The picture, uint8 ``(height, width, 3)`` BGR, with the seven rates as grid lines."""
    picture = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    for rate in RATES:
        _grid(picture, _point(rate, 0.0), _point(rate, 1.0))
        _write(picture, rate_name(rate), _point(rate, 0.0), (-10, 22))
    for tenth in range(11):
        _grid(picture, _point(RATES[0], tenth / 10), _point(RATES[-1], tenth / 10))
        _write(picture, f"{tenth / 10:.1f}", _point(RATES[0], tenth / 10), (-40, 5))
    cv2.polylines(picture, [_steps(curve)], False, _BLUE, 2, cv2.LINE_AA)
    _write(picture, f"sensitivity, {title}", (_LEFT, _TOP), (0, -25))
    _write(picture, "false positives a scan", (_WIDTH // 2, _HEIGHT), (-90, -20))
    return picture


def save_curve(path: Path, curve: Curve, title: str) -> None:
    """Writes the picture as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    _, png = cv2.imencode(".png", draw_curve(curve, title))
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


def _steps(curve: Curve) -> cv2.typing.MatLike:
    # Every threshold is a corner: first along to its false positives, then up.
    shown = curve.false_per_scan <= RATES[-1]
    rate = np.clip(np.append(curve.false_per_scan[shown], RATES[-1]), RATES[0], RATES[-1])
    height = np.append(curve.sensitivity[shown], curve.sensitivity[shown][-1])
    corners = zip(np.repeat(rate, 2)[1:], np.repeat(height, 2)[:-1], strict=True)
    return np.array([_point(float(x), float(y)) for x, y in corners], np.int32)


def _point(rate: float, sensitivity: float) -> tuple[int, int]:
    along = (np.log2(rate) - _FIRST) / (_LAST - _FIRST)
    x = _LEFT + along * (_WIDTH - _LEFT - _RIGHT)
    y = _HEIGHT - _BOTTOM - sensitivity * (_HEIGHT - _TOP - _BOTTOM)
    return round(float(x)), round(float(y))


def _grid(picture: UInt8Array, start: tuple[int, int], end: tuple[int, int]) -> None:
    cv2.line(picture, start, end, _GREY, 1)


def _write(picture: UInt8Array, text: str, at: tuple[int, int], shift: tuple[int, int]) -> None:
    place = (at[0] + shift[0], at[1] + shift[1])
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
