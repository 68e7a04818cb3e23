"""A sheet of implants to look at: each place before and after, in the three planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from evaluation.errors import MissingData
from evaluation.scan_copies import Copy
from evaluation.scan_implant import Implant, implanted
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from imaging.volume import UInt8Array

_SIDE_PX = 150
_COLUMNS = 3
"""Implants beside each other; each takes six tiles."""
_EACH = 3
"""Implants of one copy."""


def draw_sheet(copies: Sequence[Copy], most: int = 24) -> UInt8Array:
    """uint8 ``(height, width)``: axial, coronal and sagittal, above as it was, below with it.

    The copies it is drawn from are spread over all; of each come three implants at most.
    """
    strips: list[UInt8Array] = []
    for copy in copies[:: max(1, len(copies) // (most // _EACH + 2))]:
        host = copy.ready.host
        before = copy.ready.room.box
        after = preprocess(implanted(host.volume, list(copy.implants)), host.name)
        shown = copy.implants[:_EACH]
        strips += [_strip(before, after, implant, host.name) for implant in shown]
    return _grid(strips[:most])


def save_sheet(path: Path, sheet: UInt8Array) -> None:
    """Writes the sheet as PNG.

    Raises:
        MissingData: there is no such folder, or it cannot be written.
    """
    _, png = cv2.imencode(".png", sheet)
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


def _strip(before: Preprocessed, after: Preprocessed, implant: Implant, host: str) -> UInt8Array:
    side = int(max(48, 2 * round(implant.diameter_mm)))
    rows = [
        np.hstack([_tile(plane) for plane in _planes(box, implant, side)])
        for box in (before, after)
    ]
    strip = np.vstack(rows)
    text = f"{implant.donor.name} {implant.diameter_mm:.1f} mm, {host}"
    cv2.putText(strip, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, 255, 1, cv2.LINE_AA)
    return np.asarray(np.pad(strip, 2, constant_values=255), np.uint8)


def _planes(box: Preprocessed, implant: Implant, side: int) -> list[UInt8Array]:
    """Axial, coronal and sagittal through the implant, head up."""
    roi = cut_roi(box.voxels, box.geometry.to_index(implant.centre_mm), (side,) * 3)
    middle = side // 2
    return [roi[middle], roi[::-1, middle], roi[::-1, :, middle]]


def _tile(plane: UInt8Array) -> UInt8Array:
    size = (_SIDE_PX, _SIDE_PX)
    return np.asarray(cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_CUBIC))


def _grid(strips: list[UInt8Array]) -> UInt8Array:
    if not strips:
        return np.zeros((1, 1), np.uint8)
    blank = np.zeros_like(strips[0])
    padded = strips + [blank] * (-len(strips) % _COLUMNS)
    rows = [np.hstack(padded[i : i + _COLUMNS]) for i in range(0, len(padded), _COLUMNS)]
    return np.vstack(rows)
