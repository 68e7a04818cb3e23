"""Nodules: how they look, where they may lie, how they are drawn, and the exact truth of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.fields import Field, Lattice
from imaging.phantom.layers import Raster, stamp_cones
from imaging.phantom.lungs import Trees
from imaging.volume import FloatArray, HuArray, Nodule, UInt8Array

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


_SHRINK = 0.85
_GLASS_EDGE_MM = 1.6
_FINE_STEPS = 32


@dataclass(frozen=True, eq=False)
class Implant:
    """One nodule as it is drawn: ``truth`` is measured on the form, cut off at the pleura."""

    look: Look
    form: Form
    middle_mm: FloatArray
    truth: Nodule

    def depth(self, site: Site, points_mm: FloatArray) -> FloatArray:
        """Depth in mm inside the nodule at world points ``(..., 3)``, negative outside."""
        inside = self.form.depth(points_mm - self.middle_mm)
        if self._far_from_pleura(site):
            return inside
        return np.minimum(inside, -site.lattice.sample(site.lungs, points_mm))

    def _far_from_pleura(self, site: Site) -> bool:
        clear = -float(site.lattice.sample(site.lungs, self.middle_mm))
        return clear > 2.2 * self.form.radius_mm + 4


def plan_implants(
    site: Site, count: int, diameter_mm: tuple[float, float], rng: np.random.Generator
) -> list[Implant]:
    """Nodules at places that suit them; one for which there is no room is made smaller.

    Fewer than ``count`` come back only where the field of view holds no room for the smallest.
    """
    planned: list[Implant] = []
    for _ in range(count):
        look = draw_look(diameter_mm, rng)
        implant = _placed(site, look, planned, rng)
        while implant is None and look.diameter_mm * _SHRINK >= diameter_mm[0]:
            look = replace(look, diameter_mm=look.diameter_mm * _SHRINK)
            implant = _placed(site, look, planned, rng)
        if implant is not None:
            planned.append(implant)
    return planned


def draw_implant(
    anatomy: HuArray,
    raster: Raster,
    corner_mm: FloatArray,
    site: Site,
    implant: Implant,
    rng: np.random.Generator,
) -> None:
    """Adds the nodule to the anatomy in place; it never makes anything less dense."""
    shell_hu, core_hu = density_hu(implant.look, rng)
    box, points = _voxels(raster, corner_mm, implant, reach=2.7)
    edge = float(np.mean(raster.spacing_mm))
    depth = implant.depth(site, points)
    soft = max(edge, _GLASS_EDGE_MM) if shell_hu < 0 else edge
    hu = anatomy[box].astype(np.float64)
    _raise(hu, np.clip(depth / soft + 0.5, 0, 1), shell_hu)
    if core_hu != shell_hu:
        core = np.minimum(implant.form.core_depth(points - implant.middle_mm), depth)
        _raise(hu, np.clip(core / edge + 0.5, 0, 1), core_hu)
    _raise(hu, _spicules(raster, site, implant, points), min(core_hu, 0.0))
    anatomy[box] = np.rint(hu)


def mark_implant(
    mask: UInt8Array,
    raster: Raster,
    corner_mm: FloatArray,
    site: Site,
    implant: Implant,
    label: int,
) -> None:
    """Writes ``label`` into every voxel whose centre lies inside the nodule."""
    box, points = _voxels(raster, corner_mm, implant, reach=1.7)
    mask[box][implant.depth(site, points) > 0] = label


def _raise(hu: FloatArray, cover: FloatArray, target: float) -> None:
    hu += cover * np.maximum(target - hu, 0)


def _placed(
    site: Site, look: Look, others: list[Implant], rng: np.random.Generator
) -> Implant | None:
    """The nodule at a place where it fits, or None."""
    form = draw_form(look, rng)
    taken = [(other.middle_mm, other.look.diameter_mm / 2) for other in others]
    middle = find_place(site, look, taken, rng)
    return None if middle is None else _measured(site, look, form, middle)


def _measured(site: Site, look: Look, form: Form, middle: FloatArray) -> Implant:
    """The form scaled until its volume, as it is cut off, is that of the diameter asked for."""
    implant = Implant(look, form, middle, Nodule((0, 0, 0), look.diameter_mm, look.kind))
    for _ in range(3):
        diameter, centre = _truth(site, implant)
        ratio = min(look.diameter_mm / max(diameter, 1e-3), 1.4)
        form = replace(implant.form, radius_mm=implant.form.radius_mm * ratio)
        implant = replace(implant, form=form)
    diameter, centre = _truth(site, implant)
    x, y, z = centre.tolist()
    return replace(implant, truth=Nodule((x, y, z), diameter, look.kind))


def _truth(site: Site, implant: Implant) -> tuple[float, FloatArray]:
    """Diameter of the sphere of equal volume, and centroid, on a fine grid of points."""
    reach = implant.form.radius_mm * 1.7
    step = 2 * reach / _FINE_STEPS
    axis = (np.arange(_FINE_STEPS) + 0.5) * step - reach
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    points = implant.middle_mm + offsets
    weight = np.clip(implant.depth(site, points) / step + 0.5, 0, 1)
    volume = float(weight.sum()) * step**3
    centre = np.tensordot(weight, points, axes=3) / max(float(weight.sum()), 1e-9)
    return float(np.cbrt(6 * volume / np.pi)), np.asarray(centre)


def _voxels(
    raster: Raster, corner_mm: FloatArray, implant: Implant, reach: float
) -> tuple[tuple[slice, slice, slice], FloatArray]:
    """The voxels around a nodule and their centres ``(z, y, x, 3)`` in the world."""
    spacing = np.asarray(raster.spacing_mm)[::-1]
    half = implant.form.radius_mm * reach + 2
    low = np.floor((implant.middle_mm - half - corner_mm) / spacing).astype(int)
    high = np.ceil((implant.middle_mm + half - corner_mm) / spacing).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, raster.shape[::-1])
    x, y, z = (corner_mm[i] + (np.arange(low[i], high[i]) + 0.5) * spacing[i] for i in range(3))
    grid = np.meshgrid(z, y, x, indexing="ij")
    box = (slice(low[2], high[2]), slice(low[1], high[1]), slice(low[0], high[0]))
    return box, np.stack(grid[::-1], axis=-1)


def _spicules(raster: Raster, site: Site, implant: Implant, points: FloatArray) -> FloatArray:
    """Coverage of fine strands out of the surface; they are no part of the measured nodule."""
    z, y, x = points.shape[:-1]
    local = Raster((z, y, x), raster.spacing_mm)
    cover = np.zeros(local.shape, dtype=np.uint8)
    tips = implant.middle_mm + implant.form.spikes * implant.form.radius_mm
    starts = np.broadcast_to(implant.middle_mm, tips.shape)
    thick = min(0.35 + implant.form.radius_mm * 0.06, 0.9)
    radii = np.broadcast_to([thick * 1.6, thick * 0.4], (len(tips), 2))
    if len(tips):
        corner = points[0, 0, 0] - np.asarray(raster.spacing_mm)[::-1] / 2
        stamp_cones(cover, local, corner, np.stack([starts, tips], axis=1), radii)
    within = site.lattice.sample(site.lungs, points) < 0
    return np.asarray(cover / 255.0 * within)
