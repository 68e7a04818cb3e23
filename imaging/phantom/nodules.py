"""Nodules: what they look like, where they may lie, and the exact truth of what was drawn.

Where a nodule may lie: free in the lung, beside a vessel, or on the pleura.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.phantom.fields import Field, Lattice
from imaging.phantom.lungs import Trees
from imaging.volume import FloatArray

TEXTURES = {"solid": 0.62, "part-solid": 0.16, "ground-glass": 0.22}
SHAPES = {"round": 0.45, "lobulated": 0.3, "spiculated": 0.25}
PLACES = {"free": 0.5, "vessel": 0.25, "pleura": 0.25}


@dataclass(frozen=True)
class Look:
    """What a nodule shall be: diameter in mm and one word each of texture, shape and place."""

    diameter_mm: float
    texture: str
    shape: str
    place: str

    @property
    def kind(self) -> str:
        """The three words, as they stand in the truth."""
        return f"{self.texture} {self.shape} {self.place}"


@dataclass(frozen=True, eq=False)
class Form:
    """The surface of a nodule around its middle: a stretched ball with bumps.

    Attributes:
        radius_mm: the ball's radius.
        stretch: ``(3, 3)`` linear map of offsets onto the ball's.
        bumps: unit directions ``(n, 3)`` of lobules.
        heights: their heights relative to the radius.
        spikes: ``(m, 3)`` tips of spicules, relative to the radius.
        core: middle and relative radius of the solid part ``(4,)``.
    """

    radius_mm: float
    stretch: FloatArray
    bumps: FloatArray
    heights: FloatArray
    spikes: FloatArray
    core: FloatArray

    def depth(self, offsets: FloatArray) -> FloatArray:
        """How deep in mm offsets ``(..., 3)`` from the middle lie, negative outside."""
        at = offsets @ self.stretch.T
        length = np.linalg.norm(at, axis=-1)
        surface = np.ones(length.shape)
        for bump, height in zip(self.bumps, self.heights, strict=True):
            facing = (at @ bump) / np.maximum(length, 1e-6)
            surface += height * np.exp(6.0 * (facing - 1))
        return np.asarray(surface * self.radius_mm - length)

    def core_depth(self, offsets: FloatArray) -> FloatArray:
        """The same for the solid part of a part-solid nodule."""
        middle, share = self.core[:3] * self.radius_mm, self.core[3]
        away = np.linalg.norm(offsets - middle, axis=-1)
        return np.asarray(share * self.radius_mm - away)


def draw_look(diameter_mm: tuple[float, float], rng: np.random.Generator) -> Look:
    """A nodule as they occur: small ones are more frequent (uniform in the log of diameter)."""
    low, high = np.log(diameter_mm)
    texture = _choice(TEXTURES, rng)
    shape = _choice(SHAPES, rng)
    if texture == "ground-glass" and shape == "spiculated":
        shape = "round"
    return Look(float(np.exp(rng.uniform(low, high))), texture, shape, _choice(PLACES, rng))


def draw_form(look: Look, rng: np.random.Generator) -> Form:
    """A random surface of that look, its radius not yet fitted to the diameter."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    squeeze = np.diag(np.exp(rng.uniform(-0.14, 0.14, 3)))
    count = {"round": 1, "lobulated": int(rng.integers(4, 8)), "spiculated": 5}[look.shape]
    tall = {"round": 0.06, "lobulated": 0.42, "spiculated": 0.25}[look.shape]
    spikes = np.empty((0, 3))
    if look.shape == "spiculated":
        spikes = _directions(int(rng.integers(9, 20)), rng) * rng.uniform(1.5, 2.3, (1, 1))
        spikes *= rng.uniform(0.8, 1.1, (len(spikes), 1))
    core = np.append(rng.uniform(-0.25, 0.25, 3), rng.uniform(0.35, 0.6))
    return Form(
        radius_mm=look.diameter_mm / 2,
        stretch=turn @ squeeze @ turn.T,
        bumps=_directions(count, rng),
        heights=rng.uniform(0.4, 1.0, count) * tall,
        spikes=spikes,
        core=core,
    )


def density_hu(look: Look, rng: np.random.Generator) -> tuple[float, float]:
    """HU of the nodule and of its core: soft tissue, now and then calcified; or ground glass."""
    solid = float(rng.uniform(150, 500) if rng.random() < 0.07 else rng.uniform(10, 70))
    if look.texture == "solid":
        return solid, solid
    glass = float(rng.uniform(-680, -480))
    return glass, min(solid, 70.0) if look.texture == "part-solid" else glass


def _choice(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _directions(count: int, rng: np.random.Generator) -> FloatArray:
    vectors = rng.standard_normal((count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


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
