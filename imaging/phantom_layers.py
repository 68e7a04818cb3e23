"""Distance fields become a picture: layers painted one over another at the spacing asked for.

A layer covers a voxel by the part of it that lies inside, so that an edge is one voxel wide
whatever the lattice. What is painted later covers what was painted before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.phantom_lattice import Field
from imaging.volume import HuArray, UInt8Array

Plane = npt.NDArray[np.float32]
Report = Callable[[float], None]

_THREADS = 2


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
        add: the density is added to what lies beneath.
    """

    field: Field
    hu: float | Field
    shell_hu: float | None = None
    shell_mm: float = 0.0
    sheet_mm: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class Lung:
    """What is painted inside the lungs: tissue, fissures and the two trees.

    ``vessels`` and ``lumens`` are uint8 coverages of the whole picture; vessels are seen inside
    ``reach`` (the space above the diaphragm), where they also cross the mediastinum's fat.
    """

    layer: Layer
    fissures: Layer
    vessels: UInt8Array
    lumens: UInt8Array
    vessel_hu: float
    reach: Field


@dataclass(frozen=True)
class Raster:
    """The picture's voxels: ``shape`` and ``spacing_mm`` ``(z, y, x)``; it fills the lattice."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def paint(
    raster: Raster, layers: Sequence[Layer], lung: Lung, top: Sequence[Layer], report: Report
) -> HuArray:
    """The whole picture without noise, int16 HU ``(z, y, x)``: layers, the lungs, layers on top."""
    hu = np.empty(raster.shape, dtype=np.int16)
    voxel = raster.spacing_mm[1]

    def slice_at(k: int) -> None:
        at = (k + 0.5) / raster.shape[0]
        plane = np.full(raster.shape[1:], -1000, dtype=np.float32)
        for layer in layers:
            _paint_layer(plane, layer, at, voxel)
        _paint_lung(plane, lung, k, at, voxel)
        for layer in top:
            _paint_layer(plane, layer, at, voxel)
        np.rint(plane, out=plane)
        hu[k] = plane

    with ThreadPoolExecutor(_THREADS) as pool:
        for k, _ in enumerate(pool.map(slice_at, range(raster.shape[0]))):
            report((k + 1) / raster.shape[0])
    return hu


def _cut(field: Field, at: float) -> Plane:
    """The field's plane at ``at`` (0..1 of its height), linear between its planes."""
    position = min(max(at * field.shape[0] - 0.5, 0.0), field.shape[0] - 1.0)
    low = min(int(position), field.shape[0] - 2)
    part = np.float32(position - low)
    return np.asarray(field[low] * (1 - part) + field[low + 1] * part)


def _enlarged(plane: Plane, shape: tuple[int, ...]) -> Plane:
    big = cv2.resize(plane, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(big, dtype=np.float32)


def _covered(distance: Plane, edge_mm: float) -> Plane:
    """The part of each voxel inside a surface that lies ``distance`` away."""
    cover = distance * np.float32(-1 / edge_mm)
    cover += np.float32(0.5)
    return np.asarray(np.clip(cover, 0, 1, out=cover))


def _blend(plane: Plane, cover: Plane, value: float | Plane) -> None:
    plane += cover * (value - plane)


def _paint_layer(plane: Plane, layer: Layer, at: float, voxel: float) -> None:
    cut = _cut(layer.field, at)
    if cut.min() > voxel:
        return
    distance = _enlarged(cut, plane.shape)
    if layer.sheet_mm:
        cover = _sheet(distance, layer.sheet_mm, voxel)
    else:
        cover = _covered(distance, voxel)
    if layer.strength != 1:
        cover *= np.float32(layer.strength)
    value = layer.hu
    if not isinstance(value, float | int):
        value = _enlarged(_cut(value, at), plane.shape)
    if layer.shell_hu is not None:
        core = _covered(distance + np.float32(layer.shell_mm), voxel)
        value = layer.shell_hu + core * (value - layer.shell_hu)
    _blend(plane, cover, value)


def _sheet(distance: Plane, thick: float, voxel: float) -> Plane:
    """Coverage of a sheet around zero: voxels wider than the sheet are covered in part."""
    edge = max(voxel, thick)
    cover = 1 - np.abs(distance) * np.float32(1 / edge)
    cover *= np.float32(thick / edge)
    return np.asarray(np.clip(cover, 0, 1, out=cover))


def _paint_lung(plane: Plane, lung: Lung, k: int, at: float, voxel: float) -> None:
    cut = _cut(lung.reach, at)
    if cut.min() > voxel:
        return
    _paint_layer(plane, lung.layer, at, voxel)
    inside = _covered(_enlarged(_cut(lung.layer.field, at), plane.shape), voxel)
    sheet = _sheet(
        _enlarged(_cut(lung.fissures.field, at), plane.shape), lung.fissures.sheet_mm, voxel
    )
    _blend(plane, sheet * inside, float(lung.fissures.hu))  # type: ignore[arg-type]
    reach = _covered(_enlarged(cut, plane.shape), voxel) * np.float32(1 / 255)
    _blend(plane, lung.vessels[k] * reach, lung.vessel_hu)
    _blend(plane, lung.lumens[k] * reach, -1000.0)
