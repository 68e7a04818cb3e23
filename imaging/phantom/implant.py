"""Nodules into the anatomy: the exact size of each, and the drawing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from imaging.phantom.layers import Raster, stamp_cones
from imaging.phantom.nodules import Form, Look, Site, density_hu, draw_form, draw_look, find_place
from imaging.volume import FloatArray, HuArray, Nodule, UInt8Array

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
