"""The lungs: their tissue, and the trees of airways, arteries and veins.

The trees grow after Kitaoka, Takaki and Suki (J Appl Physiol 87:2207-2217, 1999): a branch serves a
region and grows towards its centre; a plane through the branch splits the region in two, and a
daughter branch grows into each part. The radius of a branch follows from the number of ends that it
serves (Murray's cube law).
"""

from dataclasses import dataclass

import numpy as np

from imaging.phantom.body import Patient, Thorax
from imaging.phantom.fields import Field, Lattice, over_slope, smooth_noise
from imaging.phantom.layers import Raster, stamp_cones
from imaging.volume import FloatArray, Triple, UInt8Array

_ENDS_MM = 9.5
"""Distance of the ends of the trees: one for every 0.9 ml of lung, as a secondary lobule has."""
_SUBPLEURAL_MM = 2.5
_VESSEL_MM, _AIRWAY_MM = 0.54, 0.42  # radius of a branch that serves one end
_AIRWAY_ENDS = 9.0
_REACH = (0.3, 0.48)
_SHARE = (0.22, 0.78)
_PIECE_MM = 7.0
_BEND = 0.28
_FADE = 0.5  # a last branch tapers to the radius of this many ends

_HILA: tuple[tuple[float, bool, Triple, Triple, Triple, Triple], ...] = (
    (-1, True, (-30, 18, -22), (-1.0, -0.4, 0.4), (-35, -4, -30), (-1.0, -0.5, 0.6)),
    (-1, False, (-34, 19, -26), (-0.3, 0.2, -1.0), (-35, 16, -54), (-0.8, 0.6, -0.6)),
    (1, True, (40, 24, -28), (0.8, -0.5, 0.5), (35, -2, -28), (0.8, -0.6, 0.6)),
    (1, False, (42, 24, -29), (0.3, 0.2, -1.0), (35, 18, -52), (0.8, 0.5, -0.6)),
)
"""Side, whether above the oblique fissure, root and first direction of bronchus and of vein."""


@dataclass(frozen=True, eq=False)
class Trees:
    """Pieces ``(n, 2, 3)`` in world mm with radii ``(n, 2)``: vessels, and lumens of airways."""

    vessels: FloatArray
    vessel_radii: FloatArray
    airways: FloatArray
    lumen_radii: FloatArray


def make_lungs(lattice: Lattice, thorax: Thorax, mediastinum: Field) -> Field:
    """Make both lungs: the space between chest wall, diaphragm and mediastinum."""
    x, y, z = lattice.axes
    # their tops are two cupulas
    top = over_slope(z - 114 + 0.017 * (np.abs(x) - 46) ** 2 + 0.010 * (y - 14) ** 2, lattice, 2.0)
    limits = (thorax.cavity + 1.5, top, -thorax.diaphragm, -mediastinum)
    return np.asarray(np.maximum.reduce(limits), dtype=np.float32)


def tissue_hu(lattice: Lattice, patient: Patient, lungs: Field, rng: np.random.Generator) -> Field:
    """Make tissue that is denser towards the back, and uneven on every scale."""
    y = lattice.axes[1]
    # dependent density: a rim along the back wall that fades within millimetres
    rim = 160 * np.exp(np.minimum(lungs, 0) / 5) * np.clip((y - 40) / 40, 0, 1)
    hu = patient.lung_hu + patient.gravity_hu_per_mm * (y + rim)
    # uneven on four scales, from lobes to lobules
    for length_mm, deviation in ((60.0, 9.0), (18.0, 7.0), (6.0, 11.0), (2.6, 14.0)):
        hu = hu + deviation * smooth_noise(lattice, length_mm, rng)
    return np.asarray(np.maximum(hu, -990), dtype=np.float32)


def grow_trees(lattice: Lattice, lungs: Field, rng: np.random.Generator) -> Trees:
    """Grow trees to ends that fill the lungs evenly, not too near to the surface."""
    # the ends: a grid with random offsets
    size = np.asarray(lattice.shape[::-1]) * lattice.step_mm
    grid = np.argwhere(np.ones(np.maximum((size / _ENDS_MM).astype(int), 1)))
    trees: list[tuple[FloatArray, FloatArray]] = []
    arteries: list[FloatArray] = []
    for side, is_upper, bronchus, bronchus_ahead, vein, vein_ahead in _HILA:
        for root, ahead in ((bronchus, bronchus_ahead), (vein, vein_ahead)):
            points = lattice.start_mm + (grid + rng.uniform(0, 1, grid.shape)) * _ENDS_MM
            points = points[lattice.sample(lungs, points) < -_SUBPLEURAL_MM]
            x, y, z = (points / lattice.scale).T
            points = points[(x * side > 0) & ((z - y > -20) == is_upper)]
            trees.append(_tree(np.asarray(root) * lattice.scale, np.asarray(ahead), points, rng))
        # the artery runs beside the airway, outwards and above
        airway, ends = trees[-2]
        apart = (_VESSEL_MM + 1.1 * _AIRWAY_MM) * np.cbrt(ends) * np.where(ends < 2, 0.5, 1.0)
        arteries.append(airway + apart[..., None] * _unit(np.array([side, -0.5, 0.8])))
    airways, ends = (np.concatenate(part) for part in zip(*trees[::2], strict=True))
    veins, vein_ends = (np.concatenate(part) for part in zip(*trees[1::2], strict=True))
    conducting = ends.min(axis=1) >= _AIRWAY_ENDS
    return Trees(
        vessels=np.concatenate([*arteries, veins]),
        vessel_radii=_VESSEL_MM * np.cbrt(np.concatenate([ends, vein_ends])),
        airways=airways[conducting],
        lumen_radii=_AIRWAY_MM * np.cbrt(ends[conducting]),
    )


def draw_trees(trees: Trees, raster: Raster) -> tuple[UInt8Array, UInt8Array]:
    """Draw the coverage, 0 to 255, of vessels and airway walls, and of lumens, ``(z, y, x)``."""
    solid = np.zeros(raster.shape, dtype=np.uint8)
    lumens = np.zeros(raster.shape, dtype=np.uint8)
    stamp_cones(solid, raster, trees.vessels, trees.vessel_radii)
    stamp_cones(solid, raster, trees.airways, trees.lumen_radii * 1.15 + 0.4)
    stamp_cones(lumens, raster, trees.airways, trees.lumen_radii)
    return solid, lumens


def _tree(
    root: FloatArray, heading: FloatArray, points: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Grow a tree from ``root`` (3,), first along ``heading`` (3,), to every point ``(n, 3)``.

    Returns:
        Straight pieces of the branches, ``(n, 2, 3)`` in world mm, and ``(n, 2)`` the number of
        ends that the branch serves there.
    """
    pieces, ends = [np.empty((0, 2, 3))], [np.empty((0, 2))]
    pending = [(root, _unit(heading), points)] if len(points) else []
    while pending:
        start, ahead, served = pending.pop()
        stop, parts = _split(start, served, rng)
        # a quadratic Bezier curve, in more pieces where it is longer
        length = float(np.linalg.norm(stop - start))
        bend = start + ahead * (length * _BEND)
        t = np.linspace(0, 1, min(int(length / _PIECE_MM) + 1, 8) + 1)[:, None]
        line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
        pieces.append(np.stack([line[:-1], line[1:]], axis=1))
        last = max((len(part) for part in parts), default=_FADE)
        count = len(served) + t * (last - len(served))
        ends.append(np.hstack([count[:-1], count[1:]]))
        pending += [(stop, _unit(stop - bend), part) for part in parts]
    return np.concatenate(pieces), np.concatenate(ends)


def _split(
    start: FloatArray, points: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, list[FloatArray]]:
    """Choose where a branch from ``start`` ends, and the points that each daughter serves."""
    if len(points) == 1:
        return np.asarray(points[0]), []
    to_centre = points.mean(axis=0) - start
    stop = start + to_centre * rng.uniform(*_REACH)
    # sort the points along the widest direction across the branch, the first principal component,
    # and cut at a random share
    along = _unit(to_centre)
    across = points - stop
    across = across - np.outer(across @ along, along)
    widest = np.linalg.eigh(across.T @ across)[1][:, -1]
    order = np.argsort(across @ widest, kind="stable")
    cut = min(max(round(len(points) * rng.uniform(*_SHARE)), 1), len(points) - 1)
    return stop, [points[order[:cut]], points[order[cut:]]]


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-9))
