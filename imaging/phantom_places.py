"""Where a nodule may lie: free in the lung, beside a vessel, or on the pleura."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.phantom_lattice import Field, Lattice
from imaging.phantom_nodules import Look
from imaging.phantom_vessels import Trees
from imaging.volume import FloatArray

Ball = tuple[FloatArray, float]
"""A place that is taken: its middle (3,) and its radius in mm."""

_TRIES = 60
_GAP_MM = 4.0
_RIM_MM = 3.0


@dataclass(frozen=True, eq=False)
class Site:
    """Where nodules are put: the lungs' distance field and the trees, in the phantom's world."""

    lattice: Lattice
    lungs: Field
    cavity: Field
    trees: Trees


def find_place(
    site: Site, look: Look, taken: Sequence[Ball], rng: np.random.Generator
) -> FloatArray | None:
    """The middle ``(3,)`` of the first of several random places where it fits, or None."""
    for middle in _PLACES[look.place](site, look.diameter_mm / 2, rng):
        if _fits(site, look, middle, taken):
            return np.asarray(middle)
    return None


def _fits(site: Site, look: Look, middle: FloatArray, others: Sequence[Ball]) -> bool:
    """Whether it lies in the field of view, clear of other nodules and of thick vessels."""
    radius = look.diameter_mm / 2
    lattice = site.lattice
    low = lattice.start_mm - lattice.step_mm / 2
    high = low + np.asarray(lattice.shape[::-1]) * lattice.step_mm
    margin = radius * 1.6 + _RIM_MM
    if np.any(middle - margin < low) or np.any(middle + margin > high):
        return False
    for other, other_radius in others:
        if float(np.linalg.norm(middle - other)) < radius + other_radius + _GAP_MM:
            return False
    return look.place == "vessel" or _clear(site.trees, middle, radius)


def _clear(trees: Trees, middle: FloatArray, radius: float) -> bool:
    """No vessel thicker than half the nodule, or than 3 mm, crosses it."""
    thick = trees.vessel_radii[:, 0] > min(radius / 2, 1.5)
    pieces = trees.vessels[thick].mean(axis=1)
    if not len(pieces):
        return True
    gap = np.linalg.norm(pieces - middle, axis=1) - trees.vessel_radii[thick, 0]
    return bool(gap.min() > radius + 1.5)


def _free_places(site: Site, radius: float, rng: np.random.Generator) -> FloatArray:
    """Deep enough in the lung that its surface stays clear of the pleura."""
    cells = site.lattice.cells(site.lungs < -(radius * 1.3 + 2.5))
    return _some(cells, rng)


def _pleura_places(site: Site, radius: float, rng: np.random.Generator) -> FloatArray:
    """On the chest wall, sunk in by a random part of the radius."""
    rim = (site.lungs < 0) & (site.lungs > -4) & (site.cavity > -6)
    points = _some(site.lattice.cells(rim), rng)
    outward = site.lattice.gradient(site.lungs, points)
    depth = -site.lattice.sample(site.lungs, points)
    wanted = radius * rng.uniform(0.35, 0.75, len(points))
    return np.asarray(points - outward * (wanted - depth)[:, None])


def _vessel_places(site: Site, radius: float, rng: np.random.Generator) -> FloatArray:
    """Beside a vessel of 1 to 4 mm, touching it."""
    radii = site.trees.vessel_radii.mean(axis=1)
    chosen = np.flatnonzero((radii > 0.6) & (radii < min(2.0, radius)))
    chosen = rng.permutation(chosen)[:_TRIES]
    pieces, radii = site.trees.vessels[chosen], radii[chosen]
    along = pieces[:, 1] - pieces[:, 0]
    across = np.cross(along, rng.standard_normal(along.shape))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    points = pieces.mean(axis=1) + across * (radius * 0.85 + radii * 0.3)[:, None]
    deep = site.lattice.sample(site.lungs, points) < -(radius * 1.2 + 1.5)
    return np.asarray(points[deep])


_PLACES: dict[str, Callable[[Site, float, np.random.Generator], FloatArray]] = {
    "free": _free_places,
    "vessel": _vessel_places,
    "pleura": _pleura_places,
}


def _some(cells: FloatArray, rng: np.random.Generator) -> FloatArray:
    chosen = rng.integers(0, max(len(cells), 1), _TRIES if len(cells) else 0)
    return np.asarray(cells[chosen] + rng.uniform(-1, 1, (len(chosen), 3)))
