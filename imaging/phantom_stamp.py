"""Thin round things drawn straight into the fine picture: pieces of vessels and airways."""

from __future__ import annotations

import numpy as np

from imaging.phantom_layers import Raster
from imaging.volume import FloatArray, UInt8Array


def stamp_cones(
    cover: UInt8Array,
    raster: Raster,
    corner_mm: FloatArray,
    pieces: FloatArray,
    radii: FloatArray,
) -> None:
    """Raises ``cover`` (0..255, part of each voxel covered) by cones.

    Args:
        cover: uint8 ``(z, y, x)``, changed in place.
        raster: its voxels.
        corner_mm: ``(x, y, z)`` world point of the outer corner of voxel (0, 0, 0).
        pieces: ``(n, 2, 3)`` world points of both ends.
        radii: ``(n, 2)`` mm at both ends.
    """
    spacing = np.asarray(raster.spacing_mm)[::-1]
    edge = float(np.mean(spacing))
    margin = radii.max(axis=1) + edge
    low = (pieces.min(axis=1) - margin[:, None] - corner_mm) / spacing - 0.5
    high = (pieces.max(axis=1) + margin[:, None] - corner_mm) / spacing - 0.5
    first = np.maximum(np.floor(low).astype(int), 0)
    last = np.minimum(np.ceil(high).astype(int) + 1, raster.shape[::-1])
    seen = np.flatnonzero((first < last).all(axis=1))
    local = (pieces - corner_mm).astype(np.float32)
    for i in seen:
        _stamp(cover, spacing, edge, local[i], radii[i], first[i], last[i])


def _stamp(
    cover: UInt8Array,
    spacing: FloatArray,
    edge: float,
    ends: FloatArray,
    radii: FloatArray,
    first: FloatArray,
    last: FloatArray,
) -> None:
    axes = [
        ((np.arange(first[i], last[i]) + 0.5) * spacing[i] - ends[0, i]).astype(np.float32)
        for i in range(3)
    ]
    x, y, z = axes[0], axes[1][:, None], axes[2][:, None, None]
    u, v, w = (ends[1] - ends[0]).tolist()
    square = max(u * u + v * v + w * w, 1e-6)
    dot = x * u + (y * v + z * w)
    part = np.clip(dot * (1 / square), 0, 1)
    away = x * x + (y * y + z * z) + part * (part * square - 2 * dot)
    distance = np.sqrt(np.maximum(away, 0, out=away), out=away)
    thin, thick = float(radii[1]), float(radii[0])
    inside = (thick - distance) + part * (thin - thick)
    inside *= np.float32(1 / edge)
    inside += np.float32(0.5)
    fill = 255.0 * min(1.0, 3.14 * max(thin, thick) ** 2 / edge**2)
    value = (np.clip(inside, 0, 1, out=inside) * np.float32(fill)).astype(np.uint8)
    box = cover[first[2] : last[2], first[1] : last[1], first[0] : last[0]]
    np.maximum(box, value, out=box)
