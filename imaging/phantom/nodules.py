"""Nodules of the phantom: appearance, location, drawing, and the exact truth of each."""

from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.fields import Field, Lattice
from imaging.phantom.layers import Raster
from imaging.phantom.lungs import Trees
from imaging.volume import FloatArray, HuArray, Nodule, triple

_TEXTURES = {"solid": 0.62, "part-solid": 0.16, "ground-glass": 0.22}
_SHAPES = {"round": 0.45, "lobulated": 0.3, "spiculated": 0.25}
_LOCATIONS = {"free": 0.5, "vessel": 0.25, "pleura": 0.25}
_BUMPS = {"round": (3, 0.06, 6.0), "lobulated": (6, 0.42, 6.0), "spiculated": (14, 1.0, 90.0)}
"""Of each shape: number of bumps, their height relative to the radius, and their sharpness."""
_TRIES = 60
_GAP_MM = 4.0
_SHRINK = 0.85
_GLASS_EDGE_MM = 1.6
_FINE_STEPS = 32


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where nodules are placed: distance fields of lungs and cavity, and the trees."""

    lattice: Lattice
    lungs: Field
    cavity: Field
    trees: Trees


@dataclass(frozen=True, eq=False)
class PlacedNodule:
    """A ball of ``radius_mm`` around the world point ``centre_mm``, with lobules or spicules.

    Attributes:
        bumps: directions ``(n, 3)`` of the bumps, as long as they are high relative to the radius.
        sharpness: how thin they are.
        truth: measured on the surface, cut off at the pleura; its kind begins with the texture.
    """

    radius_mm: float
    centre_mm: FloatArray
    bumps: FloatArray
    sharpness: float
    truth: Nodule

    def depth(self, site: Surroundings, points_mm: FloatArray) -> FloatArray:
        """Compute the depth in mm inside the nodule at world points, negative outside."""
        at = points_mm - self.centre_mm
        length = np.linalg.norm(at, axis=-1)
        surface = np.ones(length.shape)
        for bump in self.bumps:
            height = np.linalg.norm(bump)
            facing = (at @ bump) / np.maximum(length * height, 1e-6)
            surface += height * np.exp(self.sharpness * (facing - 1))
        lung = -site.lattice.sample(site.lungs, points_mm)
        return np.asarray(np.minimum(surface * self.radius_mm - length, lung))


def place_nodules(
    site: Surroundings, count: int, diameter_mm: tuple[float, float], rng: np.random.Generator
) -> list[PlacedNodule]:
    """Place random nodules; one for which there is no room is made smaller.

    The list is shorter than ``count`` only if there is no room for the smallest nodule.
    """
    placed: list[PlacedNodule] = []
    for _ in range(count):
        texture, shape, location = (
            str(rng.choice(list(shares), p=list(shares.values())))
            for shares in (_TEXTURES, _SHAPES, _LOCATIONS)
        )
        if texture == "ground-glass" and shape == "spiculated":
            shape = "round"
        bumps, height, sharpness = _BUMPS[shape]
        directions = rng.standard_normal((bumps, 3))
        directions *= height * rng.uniform(0.4, 1.0, (bumps, 1)) / _lengths(directions)[:, None]
        # small nodules are more frequent: uniform in the log of the diameter
        diameter = float(np.exp(rng.uniform(*np.log(diameter_mm))))
        while diameter >= diameter_mm[0]:
            centres = _centres(site, location, diameter / 2, rng)
            free = (c for c in centres if _is_free(site, c, diameter / 2, location, placed))
            if (centre := next(free, None)) is not None:
                truth = Nodule(triple(centre), diameter, f"{texture} {shape} {location}")
                ball = PlacedNodule(diameter / 2, centre, directions, sharpness, truth)
                placed.append(_fitted(site, ball))
                break
            diameter *= _SHRINK
    return placed


def draw_nodule(
    anatomy: HuArray,
    raster: Raster,
    site: Surroundings,
    nodule: PlacedNodule,
    rng: np.random.Generator,
) -> None:
    """Draw the nodule into the anatomy in place; it never makes anything less dense.

    It is of soft tissue, 7 % calcified, or of ground glass, with a solid core if it is part-solid.
    """
    texture = nodule.truth.kind.split()[0]
    solid = float(rng.uniform(150, 500) if rng.random() < 0.07 else rng.uniform(10, 70))
    glass, core = float(rng.uniform(-680, -480)), float(rng.uniform(0.35, 0.6))
    box, points = _voxels(raster, nodule)
    edge = float(np.mean(raster.spacing_mm))
    depth, hu = nodule.depth(site, points), anatomy[box].astype(np.float64)
    if texture != "solid":
        _raise(hu, depth / max(edge, _GLASS_EDGE_MM), glass)
    if texture == "part-solid":
        depth, solid = depth - (1 - core) * nodule.radius_mm, min(solid, 70.0)
    if texture != "ground-glass":
        _raise(hu, depth / edge, solid)
    anatomy[box] = np.rint(hu)


def _raise(hu: FloatArray, depth: FloatArray, target: float) -> None:
    """Raise voxels to ``target`` HU where they are lower; ``depth`` is in widths of the edge."""
    hu += np.clip(depth + 0.5, 0, 1) * np.maximum(target - hu, 0)


def _centres(
    site: Surroundings, location: str, radius: float, rng: np.random.Generator
) -> FloatArray:
    """Draw centres: beside a vessel of 1 to 4 mm, at the chest wall, or deep in the lung."""
    depth = -site.lungs
    if location == "vessel":
        radii = site.trees.vessel_radii.mean(axis=1)
        thin = np.flatnonzero((radii > 0.6) & (radii < min(2.0, radius)))
        chosen = rng.permutation(thin)[:_TRIES]
        pieces = site.trees.vessels[chosen]
        across = np.cross(pieces[:, 1] - pieces[:, 0], rng.standard_normal((len(pieces), 3)))
        away = (radius * 0.85 + radii[chosen] * 0.3) / np.maximum(_lengths(across), 1e-6)
        points = pieces.mean(axis=1) + across * away[:, None]
        return np.asarray(points[site.lattice.sample(depth, points) > radius * 1.2 + 1.5])
    cells = depth > radius * 1.3 + 2.5
    if location == "pleura":
        at_wall = site.lungs < site.cavity + 2
        cells = at_wall & (depth > 0.35 * radius) & (depth < 0.75 * radius)
    points = rng.permutation(site.lattice.cells(cells))[:_TRIES]
    return np.asarray(points + rng.uniform(-1, 1, points.shape))


def _is_free(
    site: Surroundings, centre: FloatArray, radius: float, location: str, others: list[PlacedNodule]
) -> bool:
    """Tell whether a nodule is in the field of view, away from other nodules and thick vessels."""
    lattice, margin = site.lattice, radius * 1.6 + 3
    last = lattice.start_mm + (np.asarray(lattice.shape[::-1]) - 1) * lattice.step_mm
    if np.any(centre - margin < lattice.start_mm) or np.any(centre + margin > last):
        return False
    for other in others:
        away = _lengths(centre - other.centre_mm)
        if away < radius + other.truth.diameter_mm / 2 + _GAP_MM:
            return False
    # no vessel thicker than half the nodule, or than 3 mm, crosses it, unless it lies at one
    radii = site.trees.vessel_radii[:, 0]
    thick = radii > min(radius / 2, 1.5)
    gaps = _lengths(site.trees.vessels[thick].mean(axis=1) - centre) - radii[thick]
    return location == "vessel" or bool(gaps.min(initial=np.inf) > radius + 1.5)


def _fitted(site: Surroundings, ball: PlacedNodule) -> PlacedNodule:
    """Scale the surface until its volume inside the lung is that of the wanted diameter."""
    wanted = ball.truth
    # the surface is cut by the pleura, so volume does not grow with the cube of the radius: a few
    # steps come close enough
    for _ in range(4):
        # centroid and volume on a fine grid, where points at the surface count in part
        step = 2 * 1.9 * ball.radius_mm / _FINE_STEPS
        axis = (np.arange(_FINE_STEPS) + 0.5 - _FINE_STEPS / 2) * step
        points = ball.centre_mm + np.stack(np.meshgrid(axis, axis, axis), axis=-1)
        weight = np.clip(ball.depth(site, points) / step + 0.5, 0, 1)
        found_mm = float(np.cbrt(6 / np.pi * weight.sum()) * step)
        centre = triple(np.tensordot(weight, points, axes=3) / weight.sum())
        fitted = replace(ball, truth=Nodule(centre, found_mm, wanted.kind))
        ball = replace(ball, radius_mm=ball.radius_mm * min(wanted.diameter_mm / found_mm, 1.4))
    return fitted


def _voxels(raster: Raster, nodule: PlacedNodule) -> tuple[tuple[slice, ...], FloatArray]:
    """Find the voxels around a nodule, and their centres ``(z, y, x, 3)`` in the world."""
    spacing, corner = np.asarray(raster.spacing_mm)[::-1], np.asarray(raster.corner_mm)
    half = nodule.radius_mm * 2.2 + 2
    low = np.floor((nodule.centre_mm - half - corner) / spacing).astype(int)
    high = np.ceil((nodule.centre_mm + half - corner) / spacing).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, raster.shape[::-1])
    box = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
    return box, np.asarray(corner + (index.transpose(2, 1, 0, 3) + 0.5) * spacing)


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(vectors, axis=-1))
