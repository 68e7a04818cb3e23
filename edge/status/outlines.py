"""The outlines of findings on the voxels that the viewer shows."""

import base64
from itertools import product
from typing import Any

import numpy as np

from edge.dicom_out.evidence import PlacedOutline, interpolated
from imaging.volume import Geometry


def outline_on(
    outline: PlacedOutline, geometry: Geometry, shape: tuple[int, ...]
) -> dict[str, Any] | None:
    """Return the voxels ``(z, y, x)`` of an outline in a volume, None where it has none.

    A voxel belongs to it if the outline, interpolated linearly, covers half of it. ``start`` and
    ``shape`` are the box that holds them, ``bits`` its voxels in base64, eight a byte, the first
    in the highest bit.
    """
    corners = np.array(list(product(*((-0.5, side - 0.5) for side in outline.mask.shape))))
    index = geometry.to_index(outline.geometry.to_world(corners))
    first = np.maximum(np.floor(index.min(0)), 0).astype(int)
    last = np.minimum(np.ceil(index.max(0)) + 1, shape).astype(int)
    if (first >= last).any():
        return None
    ranges = (np.arange(a, b, dtype=np.float64) for a, b in zip(first, last, strict=True))
    voxels = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)
    inside = interpolated(outline.mask, outline.geometry.to_index(geometry.to_world(voxels))) >= 0.5
    if not inside.any():
        return None
    used = np.argwhere(inside)
    low, high = used.min(0), used.max(0) + 1
    cut = inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return {
        "start": (first + low).tolist(),
        "shape": cut.shape,
        "bits": base64.b64encode(np.packbits(cut).tobytes()).decode(),
    }
