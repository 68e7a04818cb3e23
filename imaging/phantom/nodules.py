"""Nodules of the phantom: appearance, location, drawing, and the exact truth of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.fields import Field, Lattice
from imaging.phantom.layers import Raster, stamp_cones
from imaging.phantom.lungs import Trees
from imaging.volume import FloatArray, HuArray, Nodule, UInt8Array, triple

_TEXTURES = {"solid": 0.62, "part-solid": 0.16, "ground-glass": 0.22}
_SHAPES = {"round": 0.45, "lobulated": 0.3, "spiculated": 0.25}
_LOCATIONS = {"free": 0.5, "vessel": 0.25, "pleura": 0.25}

_TRIES = 60
_GAP_MM = 4.0
_RIM_MM = 3.0
_SHRINK = 0.85
_GLASS_EDGE_MM = 1.6
_FINE_STEPS = 32


@dataclass(frozen=True)
class Appearance:
    """The nodule to draw: diameter in mm, texture, shape and location."""

    diameter_mm: float
    texture: str
    shape: str
    location: str


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where nodules are placed: distance fields of lungs and cavity, and the trees."""

    lattice: Lattice
    lungs: Field
    cavity: Field
    trees: Trees


@dataclass(frozen=True, eq=False)
class PlacedNodule:
    """A nodule: a stretched ball with bumps.

    Attributes:
        look: its appearance.
        radius_mm: radius of the ball.
        stretch: ``(3, 3)`` linear map of offsets onto those of the ball.
        bumps: unit directions ``(n, 3)`` of lobules.
        heights: heights of the lobules relative to the radius.
        spikes: ``(m, 3)`` tips of spicules, relative to the radius.
        core: centre and relative radius of the solid part ``(4,)``.
        centre_mm: world point of the centre of the ball.
        truth: measured on the surface, cut off at the pleura.
    """

    look: Appearance
    radius_mm: float
    stretch: FloatArray
    bumps: FloatArray
    heights: FloatArray
    spikes: FloatArray
    core: FloatArray
    centre_mm: FloatArray
    truth: Nodule

    def depth(self, site: Surroundings, points_mm: FloatArray) -> FloatArray:
        """Compute the depth in mm inside the nodule at world points, negative outside."""
        # in the space where the nodule is a ball with bumps; a bump is highest in its own direction
        at = (points_mm - self.centre_mm) @ self.stretch.T
        length = np.linalg.norm(at, axis=-1)
        surface = np.ones(length.shape)
        for bump, height in zip(self.bumps, self.heights, strict=True):
            facing = (at @ bump) / np.maximum(length, 1e-6)
            surface += height * np.exp(6.0 * (facing - 1))
        inside: FloatArray = np.asarray(surface * self.radius_mm - length)
        clear = -float(site.lattice.sample(site.lungs, self.centre_mm))
        if clear > 2.2 * self.radius_mm + 4:  # far from the pleura
            return inside
        return np.minimum(inside, -site.lattice.sample(site.lungs, points_mm))


def place_nodules(
    site: Surroundings, count: int, diameter_mm: tuple[float, float], rng: np.random.Generator
) -> list[PlacedNodule]:
    """Place random nodules; one for which there is no room is made smaller.

    The list is shorter than ``count`` only if there is no room for the smallest nodule.
    """
    placed: list[PlacedNodule] = []
    for _ in range(count):
        look = _draw_appearance(diameter_mm, rng)
        nodule = _placed(site, look, placed, rng)
        while nodule is None and look.diameter_mm * _SHRINK >= diameter_mm[0]:
            look = replace(look, diameter_mm=look.diameter_mm * _SHRINK)
            nodule = _placed(site, look, placed, rng)
        if nodule is not None:
            placed.append(nodule)
    return placed


def draw_nodule(
    anatomy: HuArray,
    raster: Raster,
    site: Surroundings,
    nodule: PlacedNodule,
    rng: np.random.Generator,
) -> None:
    """Draw the nodule into the anatomy in place; it never makes anything less dense."""
    shell_hu, core_hu = _density_hu(nodule.look, rng)
    box, points = _voxels(raster, nodule, reach=2.7)
    edge = float(np.mean(raster.spacing_mm))
    depth = nodule.depth(site, points)
    soft = max(edge, _GLASS_EDGE_MM) if shell_hu < 0 else edge
    hu = anatomy[box].astype(np.float64)
    _raise(hu, np.clip(depth / soft + 0.5, 0, 1), shell_hu)
    if core_hu != shell_hu:
        # the depth in the solid part
        centre, share = nodule.core[:3] * nodule.radius_mm, nodule.core[3]
        away = np.linalg.norm(points - nodule.centre_mm - centre, axis=-1)
        core = np.minimum(share * nodule.radius_mm - away, depth)
        _raise(hu, np.clip(core / edge + 0.5, 0, 1), core_hu)
    _raise(hu, _spicules(raster, site, nodule, points), min(core_hu, 0.0))
    anatomy[box] = np.rint(hu)


def label_nodule(
    mask: UInt8Array, raster: Raster, site: Surroundings, nodule: PlacedNodule, label: int
) -> None:
    """Write ``label`` into every voxel whose centre is inside the nodule."""
    box, points = _voxels(raster, nodule, reach=1.7)
    mask[box][nodule.depth(site, points) > 0] = label


def _placed(
    site: Surroundings, look: Appearance, others: list[PlacedNodule], rng: np.random.Generator
) -> PlacedNodule | None:
    """Place a nodule where it fits; None if there is no room."""
    nodule = _draw_shape(look, rng)
    for centre in _CENTRES[look.location](site, look.diameter_mm / 2, rng):
        if _fits(site, look, centre, others):
            return _measured(site, replace(nodule, centre_mm=centre))
    return None


def _fits(
    site: Surroundings, look: Appearance, centre: FloatArray, others: Sequence[PlacedNodule]
) -> bool:
    """Tell whether a nodule is in the field of view, away from other nodules and thick vessels."""
    radius, lattice = look.diameter_mm / 2, site.lattice
    low = lattice.start_mm - lattice.step_mm / 2
    high = low + np.asarray(lattice.shape[::-1]) * lattice.step_mm
    margin = radius * 1.6 + _RIM_MM
    if np.any(centre - margin < low) or np.any(centre + margin > high):
        return False
    for other in others:
        if np.linalg.norm(centre - other.centre_mm) < radius + other.look.diameter_mm / 2 + _GAP_MM:
            return False
    return look.location == "vessel" or _clear(site.trees, centre, radius)


def _clear(trees: Trees, centre: FloatArray, radius: float) -> bool:
    """Tell whether no vessel thicker than half the nodule, or than 3 mm, crosses it."""
    thick = trees.vessel_radii[:, 0] > min(radius / 2, 1.5)
    pieces = trees.vessels[thick].mean(axis=1)
    if not len(pieces):
        return True
    gap = np.linalg.norm(pieces - centre, axis=1) - trees.vessel_radii[thick, 0]
    return bool(gap.min() > radius + 1.5)


def _free_centres(site: Surroundings, radius: float, rng: np.random.Generator) -> FloatArray:
    """Draw centres deep enough in the lung that the surface does not touch the pleura."""
    return _some(site.lattice.cells(site.lungs < -(radius * 1.3 + 2.5)), rng)


def _pleura_centres(site: Surroundings, radius: float, rng: np.random.Generator) -> FloatArray:
    """Draw centres at the chest wall, at a depth of a random part of the radius."""
    rim = (site.lungs < 0) & (site.lungs > -4) & (site.cavity > -6)
    points = _some(site.lattice.cells(rim), rng)
    outward = site.lattice.gradient(site.lungs, points)
    depth = -site.lattice.sample(site.lungs, points)
    wanted = radius * rng.uniform(0.35, 0.75, len(points))
    return np.asarray(points - outward * (wanted - depth)[:, None])


def _vessel_centres(site: Surroundings, radius: float, rng: np.random.Generator) -> FloatArray:
    """Draw centres beside a vessel of 1 to 4 mm, touching it."""
    radii = site.trees.vessel_radii.mean(axis=1)
    chosen = rng.permutation(np.flatnonzero((radii > 0.6) & (radii < min(2.0, radius))))[:_TRIES]
    pieces, radii = site.trees.vessels[chosen], radii[chosen]
    along = pieces[:, 1] - pieces[:, 0]
    across = np.cross(along, rng.standard_normal(along.shape))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    points = pieces.mean(axis=1) + across * (radius * 0.85 + radii * 0.3)[:, None]
    deep = site.lattice.sample(site.lungs, points) < -(radius * 1.2 + 1.5)
    return np.asarray(points[deep])


_CENTRES: dict[str, Callable[[Surroundings, float, np.random.Generator], FloatArray]] = {
    "free": _free_centres,
    "vessel": _vessel_centres,
    "pleura": _pleura_centres,
}


def _some(cells: FloatArray, rng: np.random.Generator) -> FloatArray:
    chosen = rng.integers(0, max(len(cells), 1), _TRIES if len(cells) else 0)
    return np.asarray(cells[chosen] + rng.uniform(-1, 1, (len(chosen), 3)))


def _draw_appearance(diameter_mm: tuple[float, float], rng: np.random.Generator) -> Appearance:
    """Draw an appearance; small nodules are more frequent (uniform in the log of diameter)."""
    texture = _choice(_TEXTURES, rng)
    shape = _choice(_SHAPES, rng)
    if texture == "ground-glass" and shape == "spiculated":
        shape = "round"
    diameter = float(np.exp(rng.uniform(*np.log(diameter_mm))))
    return Appearance(diameter, texture, shape, _choice(_LOCATIONS, rng))


def _draw_shape(look: Appearance, rng: np.random.Generator) -> PlacedNodule:
    """Draw a random surface of that appearance, its radius not yet fitted to the diameter."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    squeeze = np.diag(np.exp(rng.uniform(-0.14, 0.14, 3)))
    count = {"round": 1, "lobulated": int(rng.integers(4, 8)), "spiculated": 5}[look.shape]
    tall = {"round": 0.06, "lobulated": 0.42, "spiculated": 0.25}[look.shape]
    spikes = np.empty((0, 3))
    if look.shape == "spiculated":
        spikes = _directions(int(rng.integers(9, 20)), rng) * rng.uniform(1.5, 2.3, (1, 1))
        spikes *= rng.uniform(0.8, 1.1, (len(spikes), 1))
    core = np.append(rng.uniform(-0.25, 0.25, 3), rng.uniform(0.35, 0.6))
    return PlacedNodule(
        look=look,
        radius_mm=look.diameter_mm / 2,
        stretch=turn @ squeeze @ turn.T,
        bumps=_directions(count, rng),
        heights=rng.uniform(0.4, 1.0, count) * tall,
        spikes=spikes,
        core=core,
        centre_mm=np.zeros(3),
        truth=Nodule((0, 0, 0), look.diameter_mm),
    )


def _choice(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _directions(count: int, rng: np.random.Generator) -> FloatArray:
    vectors = rng.standard_normal((count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _measured(site: Surroundings, nodule: PlacedNodule) -> PlacedNodule:
    """Scale the surface until its volume inside the lung is that of the requested diameter."""
    look = nodule.look
    # the surface is cut by the pleura, so volume does not grow with the cube of the radius: a few
    # steps come close enough
    for _ in range(3):
        diameter, _centroid = _truth(site, nodule)
        ratio = min(look.diameter_mm / max(diameter, 1e-3), 1.4)
        nodule = replace(nodule, radius_mm=nodule.radius_mm * ratio)
    diameter, centroid = _truth(site, nodule)
    kind = f"{look.texture} {look.shape} {look.location}"
    return replace(nodule, truth=Nodule(triple(centroid), diameter, kind))


def _truth(site: Surroundings, nodule: PlacedNodule) -> tuple[float, FloatArray]:
    """Measure centroid and diameter (sphere of equal volume) on a fine grid of points."""
    reach = nodule.radius_mm * 1.7
    step = 2 * reach / _FINE_STEPS
    axis = (np.arange(_FINE_STEPS) + 0.5) * step - reach
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    points = nodule.centre_mm + offsets
    # points at the surface count by the share of their cell that is inside
    weight = np.clip(nodule.depth(site, points) / step + 0.5, 0, 1)
    volume = float(weight.sum()) * step**3
    centre = np.tensordot(weight, points, axes=3) / max(float(weight.sum()), 1e-9)
    return float(np.cbrt(6 * volume / np.pi)), np.asarray(centre)


def _density_hu(look: Appearance, rng: np.random.Generator) -> tuple[float, float]:
    """Draw the HU of the nodule and of its core: soft tissue, 7 % calcified, or ground glass."""
    solid = float(rng.uniform(150, 500) if rng.random() < 0.07 else rng.uniform(10, 70))
    if look.texture == "solid":
        return solid, solid
    glass = float(rng.uniform(-680, -480))
    return glass, min(solid, 70.0) if look.texture == "part-solid" else glass


def _voxels(
    raster: Raster, nodule: PlacedNodule, reach: float
) -> tuple[tuple[slice, slice, slice], FloatArray]:
    """Find the voxels around a nodule, and their centres ``(z, y, x, 3)`` in the world."""
    spacing, corner = np.asarray(raster.spacing_mm)[::-1], np.asarray(raster.corner_mm)
    half = nodule.radius_mm * reach + 2
    low = np.floor((nodule.centre_mm - half - corner) / spacing).astype(int)
    high = np.ceil((nodule.centre_mm + half - corner) / spacing).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, raster.shape[::-1])
    x, y, z = (corner[i] + (np.arange(low[i], high[i]) + 0.5) * spacing[i] for i in range(3))
    grid = np.meshgrid(z, y, x, indexing="ij")
    box = (slice(low[2], high[2]), slice(low[1], high[1]), slice(low[0], high[0]))
    return box, np.stack(grid[::-1], axis=-1)


def _raise(hu: FloatArray, cover: FloatArray, target: float) -> None:
    """Raise a share of each voxel to ``target`` HU where it is lower, in place."""
    hu += cover * np.maximum(target - hu, 0)


def _spicules(
    raster: Raster, site: Surroundings, nodule: PlacedNodule, points: FloatArray
) -> FloatArray:
    """Draw the coverage of fine strands out of the surface; the truth does not include them."""
    z, y, x = points.shape[:-1]
    corner = points[0, 0, 0] - np.asarray(raster.spacing_mm)[::-1] / 2
    local = Raster((z, y, x), raster.spacing_mm, triple(corner))
    cover = np.zeros(local.shape, dtype=np.uint8)
    tips = nodule.centre_mm + nodule.spikes * nodule.radius_mm
    starts = np.broadcast_to(nodule.centre_mm, tips.shape)
    thick = min(0.35 + nodule.radius_mm * 0.06, 0.9)
    radii = np.broadcast_to([thick * 1.6, thick * 0.4], (len(tips), 2))
    if len(tips):
        stamp_cones(cover, local, np.stack([starts, tips], axis=1), radii)
    within = site.lattice.sample(site.lungs, points) < 0
    return np.asarray(cover / 255.0 * within)
