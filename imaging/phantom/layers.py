"""Distance fields become a picture: layers painted one over another at the spacing asked for.

A layer covers a voxel by the part of it that lies inside, so that an edge is one voxel wide
whatever the lattice. What is painted later covers what was painted before.

Thin round things drawn straight into the fine picture: pieces of vessels and airways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field
from imaging.volume import FloatArray, HuArray, Triple, UInt8Array

Plane = npt.NDArray[np.float32]

_THREADS = 2
_AIR_HU = -1000.0
_FISSURE_HU, _FISSURE_MM = -600.0, 0.4


@dataclass(frozen=True, eq=False)
class Layer:
    """One tissue.

    Attributes:
        field: its distance field, mm, negative inside.
        hu: its density, one number or a lattice field.
        shell_hu: density of a shell inside its surface, if it has one (the cortex of bone).
        shell_mm: that shell's thickness.
        sheet_mm: if not 0, only a sheet of this thickness around the zero of the field is painted.
        strength: how much of what lies beneath is covered, 0..1.
    """

    field: Field
    hu: float | Field
    shell_hu: float | None = None
    shell_mm: float = 0.0
    sheet_mm: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class LungLayer:
    """What is painted inside the lungs: tissue, fissures and the two trees.

    Attributes:
        field: the lungs' distance field.
        tissue_hu: lattice field of the parenchyma's density.
        fissures: distance to the nearest fissure, signed.
        reach: where vessels are seen: the space above the diaphragm, so that they also cross the
            mediastinum's fat.
        vessels: uint8 coverage ``(z, y, x)`` of the picture by vessels and airway walls.
        lumens: the same of the airways' air.
        vessel_hu: density of vessels.
    """

    field: Field
    tissue_hu: Field
    fissures: Field
    reach: Field
    vessels: UInt8Array
    lumens: UInt8Array
    vessel_hu: float


@dataclass(frozen=True)
class Raster:
    """The picture's voxels: ``shape`` and ``spacing_mm`` ``(z, y, x)``; it fills the lattice."""

    shape: tuple[int, int, int]
    spacing_mm: Triple


@dataclass(frozen=True)
class _Cut:
    """One slice of the picture: its number, its height 0..1, its shape and its voxel's width."""

    k: int
    at: float
    shape: tuple[int, int]
    voxel_mm: float

    def lattice_plane(self, field: Field) -> Plane:
        """The field at the slice's height, linear between the lattice's planes."""
        top = field.shape[0] - 1
        position = min(max(self.at * field.shape[0] - 0.5, 0.0), float(top))
        low = min(int(position), top - 1)
        part = np.float32(position - low)
        return np.asarray(field[low] * (1 - part) + field[low + 1] * part)

    def enlarged(self, plane: Plane) -> Plane:
        """A plane of the lattice at the picture's spacing."""
        size = self.shape[::-1]
        return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR), np.float32)

    def of(self, field: Field) -> Plane:
        """The field in this slice, at the picture's spacing."""
        return self.enlarged(self.lattice_plane(field))

    def inside(self, distance: Plane) -> Plane:
        """The part of each voxel inside a surface that lies ``distance`` away."""
        cover = distance * np.float32(-1 / self.voxel_mm) + np.float32(0.5)
        return np.asarray(np.clip(cover, 0, 1, out=cover))

    def sheet(self, distance: Plane, thick_mm: float) -> Plane:
        """The part of each voxel that a sheet around zero distance fills."""
        edge = max(self.voxel_mm, thick_mm)
        cover = 1 - np.abs(distance) * np.float32(1 / edge)
        return np.asarray(np.clip(cover, 0, 1, out=cover) * np.float32(thick_mm / edge))


def paint(
    raster: Raster,
    under: Sequence[Layer],
    lungs: LungLayer,
    over: Sequence[Layer],
    progress: Callable[[float], None],
) -> HuArray:
    """The picture without noise, int16 HU ``(z, y, x)``: ``under``, the lungs, then ``over``."""
    hu = np.empty(raster.shape, dtype=np.int16)
    count, rows, columns = raster.shape

    def paint_slice(k: int) -> None:
        cut = _Cut(k, (k + 0.5) / count, (rows, columns), raster.spacing_mm[1])
        plane = np.full(cut.shape, _AIR_HU, dtype=np.float32)
        for layer in under:
            _paint_layer(plane, layer, cut)
        _paint_lungs(plane, lungs, cut)
        for layer in over:
            _paint_layer(plane, layer, cut)
        hu[k] = np.rint(plane, out=plane)

    with ThreadPoolExecutor(_THREADS) as pool:
        for k, _ in enumerate(pool.map(paint_slice, range(count))):
            progress((k + 1) / count)
    return hu


def _blend(plane: Plane, cover: Plane, value: float | Plane) -> None:
    plane += cover * (value - plane)


def _paint_layer(plane: Plane, layer: Layer, cut: _Cut) -> None:
    coarse = cut.lattice_plane(layer.field)
    if coarse.min() > cut.voxel_mm:
        return
    distance = cut.enlarged(coarse)
    sheet = layer.sheet_mm
    cover = cut.sheet(distance, sheet) if sheet else cut.inside(distance)
    if layer.strength != 1:
        cover *= np.float32(layer.strength)
    _blend(plane, cover, _density(layer, distance, cut))


def _density(layer: Layer, distance: Plane, cut: _Cut) -> float | Plane:
    inner = cut.of(layer.hu) if isinstance(layer.hu, np.ndarray) else layer.hu
    if layer.shell_hu is None:
        return inner
    core = cut.inside(distance + np.float32(layer.shell_mm))
    return np.asarray(layer.shell_hu + core * (inner - layer.shell_hu), dtype=np.float32)


def _paint_lungs(plane: Plane, lungs: LungLayer, cut: _Cut) -> None:
    reach = cut.lattice_plane(lungs.reach)
    if reach.min() > cut.voxel_mm:
        return
    inside = cut.inside(cut.of(lungs.field))
    _blend(plane, inside, cut.of(lungs.tissue_hu))
    _blend(plane, inside * cut.sheet(cut.of(lungs.fissures), _FISSURE_MM), _FISSURE_HU)
    seen = cut.inside(cut.enlarged(reach)) * np.float32(1 / 255)
    _blend(plane, lungs.vessels[cut.k] * seen, lungs.vessel_hu)
    _blend(plane, lungs.lumens[cut.k] * seen, _AIR_HU)


def stamp_cones(
    cover: UInt8Array, raster: Raster, corner_mm: FloatArray, pieces: FloatArray, radii: FloatArray
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
