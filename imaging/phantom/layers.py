"""Paint distance fields as layers of an image, one over another, at any spacing.

A layer covers a voxel by the share of it that is inside, so that an edge is one voxel wide
whatever the lattice. Later layers cover earlier ones. Vessels and airways are too thin for the
lattice: they are drawn as cones into the fine image.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field
from imaging.volume import FloatArray, HuArray, Triple, UInt8Array

Plane = npt.NDArray[np.float32]

AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Layer:
    """One tissue.

    Attributes:
        field: its distance field, mm, negative inside.
        hu: its density, one number or a lattice field.
        shell_hu: density of a shell inside its surface, if it has one (the cortex of bone).
        shell_mm: thickness of the shell.
        sheet_mm: if not 0, only a sheet of this thickness around the zero of the field is painted.
        opacity: from 0 to 1.
        within: distance field of what else a voxel must lie in, if there is such.
        drawn: uint8 coverage ``(z, y, x)`` of the image by what was drawn, if it is not all.
    """

    field: Field
    hu: float | Field
    shell_hu: float | None = None
    shell_mm: float = 0.0
    sheet_mm: float = 0.0
    opacity: float = 1.0
    within: Field | None = None
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


@dataclass(frozen=True)
class _Section:
    """One slice of the image: its number, its height 0 to 1, its shape and its voxel width."""

    k: int
    at: float
    shape: tuple[int, int]
    voxel_mm: float

    def lattice_plane(self, field: Field) -> Plane:
        """Interpolate the field at the height of the slice, between two planes of the lattice."""
        top = field.shape[0] - 1
        position = min(max(self.at * field.shape[0] - 0.5, 0.0), float(top))
        low = min(int(position), top - 1)
        part = np.float32(position - low)
        return np.asarray(field[low] * (1 - part) + field[low + 1] * part)

    def enlarged(self, plane: Plane) -> Plane:
        """Enlarge a plane of the lattice to the spacing of the image."""
        size = self.shape[::-1]
        return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR), np.float32)

    def sample(self, field: Field) -> Plane:
        """Interpolate the field in this slice at the spacing of the image."""
        return self.enlarged(self.lattice_plane(field))

    def inside(self, distance: Plane) -> Plane:
        """Compute the share of each voxel inside a surface at ``distance``: 0.5 on the surface."""
        cover = distance * np.float32(-1 / self.voxel_mm) + np.float32(0.5)
        return np.asarray(np.clip(cover, 0, 1, out=cover))

    def sheet(self, distance: Plane, thick_mm: float) -> Plane:
        """Compute the share of each voxel that a sheet around zero distance fills."""
        # a sheet thinner than a voxel is drawn one voxel wide and as much fainter
        edge = max(self.voxel_mm, thick_mm)
        cover = 1 - np.abs(distance) * np.float32(1 / edge)
        return np.asarray(np.clip(cover, 0, 1, out=cover) * np.float32(thick_mm / edge))


def paint(raster: Raster, layers: Sequence[Layer], progress: Callable[[float], None]) -> HuArray:
    """Paint the layers without noise, int16 HU ``(z, y, x)``."""
    hu = np.empty(raster.shape, dtype=np.int16)
    count, rows, columns = raster.shape

    def paint_slice(k: int) -> None:
        section = _Section(k, (k + 0.5) / count, (rows, columns), raster.spacing_mm[1])
        plane = np.full(section.shape, AIR_HU, dtype=np.float32)
        for layer in layers:
            _paint_layer(plane, layer, section)
        hu[k] = np.rint(plane, out=plane)

    with ThreadPoolExecutor(2) as pool:
        for k, _ in enumerate(pool.map(paint_slice, range(count))):
            progress((k + 1) / count)
    return hu


def _paint_layer(plane: Plane, layer: Layer, section: _Section) -> None:
    coarse = section.lattice_plane(layer.field)
    if coarse.min() > section.voxel_mm:  # the layer is not in this slice
        return
    distance = section.enlarged(coarse)
    sheet = layer.sheet_mm
    cover = section.sheet(distance, sheet) if sheet else section.inside(distance)
    if layer.opacity != 1:
        cover *= np.float32(layer.opacity)
    if layer.within is not None:
        cover *= section.inside(section.sample(layer.within))
    if layer.drawn is not None:
        cover *= np.float32(1 / 255)
        cover *= layer.drawn[section.k]
    hu = section.sample(layer.hu) if isinstance(layer.hu, np.ndarray) else layer.hu
    if layer.shell_hu is not None:
        # inside the shell is what lies deeper than its thickness
        core = section.inside(distance + np.float32(layer.shell_mm))
        hu = np.asarray(layer.shell_hu + core * (hu - layer.shell_hu), dtype=np.float32)
    plane += cover * (hu - plane)


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
    # this loop draws some ten thousand cones a phantom, so its arithmetic is spelled out: few
    # passes over the box, and none that needs all three coordinates at once
    for n in np.flatnonzero((first < last).all(axis=1)):
        ends, (thick, thin) = local[n], radii[n].tolist()
        # voxel centres relative to the first end, as three axes that broadcast
        x, y, z = (
            ((np.arange(first[n, i], last[n, i]) + 0.5) * spacing[i] - ends[0, i]).astype(
                np.float32
            )
            for i in range(3)
        )
        y, z = y[:, None], z[:, None, None]
        u, v, w = (ends[1] - ends[0]).tolist()
        # p - part * (u, v, w) is the way from the nearest point of the segment to voxel p, with
        # `part` 0 at the first end and 1 at the last; its squared length by the binomial formula
        square = max(u * u + v * v + w * w, 1e-6)
        dot = x * u + (y * v + z * w)
        part = np.clip(dot * (1 / square), 0, 1)
        away = x * x + (y * y + z * z) + part * (part * square - 2 * dot)
        distance = np.sqrt(np.maximum(away, 0, out=away), out=away)
        # depth below the surface of the cone there, as a share of a voxel
        inside = (thick - distance) + part * (thin - thick)
        inside *= np.float32(1 / edge)
        inside += np.float32(0.5)
        # a vessel thinner than a voxel covers only the share of its own section
        fill = 255.0 * min(1.0, 3.14 * max(thin, thick) ** 2 / edge**2)
        value = (np.clip(inside, 0, 1, out=inside) * np.float32(fill)).astype(np.uint8)
        (x0, y0, z0), (x1, y1, z1) = first[n], last[n]
        box = cover[z0:z1, y0:y1, x0:x1]
        np.maximum(box, value, out=box)
