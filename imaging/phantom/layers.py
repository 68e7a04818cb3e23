"""Paint distance fields as layers of an image, one over another, at any spacing.

A layer covers a voxel by the share of it that is inside, so that an edge is one voxel wide
whatever the lattice. Later layers cover earlier ones. Vessels and airways are too thin for the
lattice: they are drawn as cones into the fine image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field
from imaging.volume import FloatArray, HuArray, Triple, UInt8Array

Plane = npt.NDArray[np.float32]

AIR_HU = -1000.0
SHELL_MM = 1.5


@dataclass(frozen=True, eq=False)
class Layer:
    """One tissue.

    Attributes:
        field: its distance field, mm, negative inside.
        hu: its density, one number or a lattice field.
        shell_hu: density of a thin shell inside its surface, if it has one (the cortex of bone).
        drawn: uint8 coverage ``(z, y, x)`` of the image by what was drawn, if it is not all.
    """

    field: Field
    hu: float | Field
    shell_hu: float | None = None
    drawn: UInt8Array | None = None


@dataclass(frozen=True)
class Raster:
    """The voxels of an image.

    Attributes:
        shape: number of voxels ``(z, y, x)``.
        spacing_mm: their spacing ``(z, y, x)``.
        corner_mm: world point ``(x, y, z)`` of the outer corner of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    corner_mm: Triple = (0.0, 0.0, 0.0)


def paint(raster: Raster, layers: Sequence[Layer]) -> HuArray:
    """Paint the layers without noise, int16 HU ``(z, y, x)``."""
    hu = np.empty(raster.shape, dtype=np.int16)

    def paint_slice(k: int) -> None:
        plane = np.full(raster.shape[1:], AIR_HU, dtype=np.float32)
        for layer in layers:
            _paint_layer(plane, layer, k, raster)
        hu[k] = np.rint(plane, out=plane)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(paint_slice, range(len(hu))))
    return hu


def _paint_layer(plane: Plane, layer: Layer, k: int, raster: Raster) -> None:
    share, voxel_mm = (k + 0.5) / raster.shape[0], raster.spacing_mm[1]
    coarse = _section(layer.field, share)
    if coarse.min() > voxel_mm:  # the layer is not in this slice
        return
    depth = cv2.resize(coarse, plane.shape[::-1]) * np.float32(-1 / voxel_mm)
    # the share of each voxel that is inside: 0.5 on the surface
    cover = np.clip(depth + np.float32(0.5), 0, 1)
    if layer.drawn is not None:
        cover *= layer.drawn[k] * np.float32(1 / 255)
    hu = layer.hu
    if isinstance(hu, np.ndarray):
        hu = np.asarray(cv2.resize(_section(hu, share), plane.shape[::-1]), np.float32)
    if layer.shell_hu is not None:
        core = np.clip(depth + np.float32(0.5 - SHELL_MM / voxel_mm), 0, 1)
        hu = np.asarray(layer.shell_hu + core * (hu - layer.shell_hu), dtype=np.float32)
    plane += cover * (hu - plane)


def _section(field: Field, share: float) -> Plane:
    """Interpolate the field between two planes of the lattice, at a share of its height."""
    position = np.clip(share * len(field) - 0.5, 0, len(field) - 1)
    low = min(int(position), len(field) - 2)
    part = np.float32(position - low)
    return np.asarray(field[low] * (1 - part) + field[low + 1] * part)


def stamp_cones(cover: UInt8Array, raster: Raster, pieces: FloatArray, radii: FloatArray) -> None:
    """Draw cones into ``cover``, uint8 ``(z, y, x)``: the share of each voxel covered, 0 to 255.

    ``pieces`` ``(n, 2, 3)`` are the world points of both ends, ``radii`` ``(n, 2)`` the mm there.
    """
    spacing, corner = np.asarray(raster.spacing_mm)[::-1], np.asarray(raster.corner_mm)
    edge = float(np.mean(spacing))
    # the box of voxels around every piece; pieces outside the image are left out
    margin = radii.max(axis=1) + edge
    low = (pieces.min(axis=1) - margin[:, None] - corner) / spacing - 0.5
    high = (pieces.max(axis=1) + margin[:, None] - corner) / spacing - 0.5
    first = np.maximum(np.floor(low).astype(int), 0)
    last = np.minimum(np.ceil(high).astype(int) + 1, raster.shape[::-1])
    local = (pieces - corner).astype(np.float32)
    for n in np.flatnonzero((first < last).all(axis=1)):
        (x0, y0, z0), (x1, y1, z1) = first[n], last[n]
        # voxel centres relative to the first end, as three axes that broadcast
        x, y, z = (
            ((np.arange(first[n, i], last[n, i]) + 0.5) * spacing[i] - local[n, 0, i]).astype(
                np.float32
            )
            for i in range(3)
        )
        y, z = y[:, None], z[:, None, None]
        u, v, w = (local[n, 1] - local[n, 0]).tolist()
        square = max(u * u + v * v + w * w, 1e-6)
        dot = x * u + (y * v + z * w)
        # where along the piece, 0 to 1, each voxel is nearest to it; the squared distance from
        # there by the binomial formula, which needs few passes over the box
        part = np.clip(dot * (1 / square), 0, 1)
        away = x * x + (y * y + z * z) + part * (part * square - 2 * dot)
        thick, thin = radii[n].tolist()
        depth = (thick - np.sqrt(np.maximum(away, 0))) + part * (thin - thick)
        # a vessel thinner than a voxel covers only the share of its own section
        fill = 255.0 * min(1.0, 3.14 * max(thin, thick) ** 2 / edge**2)
        value = np.clip(depth * np.float32(1 / edge) + np.float32(0.5), 0, 1) * np.float32(fill)
        box = cover[z0:z1, y0:y1, x0:x1]
        np.maximum(box, value.astype(np.uint8), out=box)
