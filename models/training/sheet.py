"""A sheet of what the screening network is shown: mosaics, mirrored cubes, crops of scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from imaging.volume import UInt8Array
from models.training.compose import Composer
from models.training.data import Piece

NODULE, IGNORED = (80, 220, 80), (150, 150, 150)
"""BGR of a circle around what counts and around what counts neither way."""

_SCALE = 2


def draw_samples(composer: Composer, columns: int, seed: int) -> UInt8Array:
    """uint8 BGR ``(height, width, 3)``: a row for each composition, ``columns`` samples of each.

    Each tile is the axial slice that most nodules cross; circles have the nodules' diameters.
    """
    rng = np.random.default_rng(seed)
    makers: list[tuple[str, Callable[[np.random.Generator], Piece]]] = [
        ("mosaic", composer.mosaic), ("mirrored", composer.mirror), ("scan", composer.scan)
    ]  # fmt: skip
    rows = [np.hstack([_tile(make(rng), name) for _ in range(columns)]) for name, make in makers]
    return np.asarray(np.vstack(rows), np.uint8)


def save_samples(path: Path, sheet: UInt8Array) -> None:
    """Writes the sheet as PNG; `OSError` where that cannot be."""
    _, png = cv2.imencode(".png", sheet)
    path.write_bytes(png.tobytes())


def _tile(sample: Piece, name: str) -> UInt8Array:
    z = _busiest(sample)
    size = tuple(_SCALE * n for n in sample.voxels.shape[:0:-1])
    grey = cv2.resize(np.ascontiguousarray(sample.voxels[z]), size, interpolation=cv2.INTER_CUBIC)
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for marks, colour in ((sample.ignored, IGNORED), (sample.nodules, NODULE)):
        for away, y, x, diameter in marks - np.array([z, 0, 0, 0]):
            if abs(away) <= max(diameter, 4) / 2:
                centre = (round(_SCALE * (x + 0.5)), round(_SCALE * (y + 0.5)))
                cv2.circle(tile, centre, round(_SCALE * max(diameter, 4) / 2) + 2, colour, 1)
    cv2.putText(tile, name, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(np.pad(tile, ((0, 2), (0, 2), (0, 0)), constant_values=255), np.uint8)


def _busiest(sample: Piece) -> int:
    """The slice that most nodules cross; the middle one where there is none."""
    depth = sample.voxels.shape[0]
    if not len(sample.nodules):
        return int(depth // 2)
    away = np.abs(np.arange(depth)[:, None] - sample.nodules[:, 0])
    return int(np.argmax((away < sample.nodules[:, 3] / 2).sum(1)))
