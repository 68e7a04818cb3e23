"""Distance fields of simple bodies on a coarse lattice over the field of view.

A distance field is float32 ``(z, y, x)`` in mm, negative inside. It is smooth where the image is
sharp: a lattice of 2.5 mm holds the surfaces of the chest well enough to draw them at any finer
spacing. Points are ``(x, y, z)``. Anatomy is written in the *reference body*: mm of one adult,
origin on the midline at the height of the carina, axes as in the patient (x to the left, y to the
back, z to the head). The patient is the reference body scaled and slightly bent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, Triple

Field = npt.NDArray[np.float32]

_FAR_MM = 25.0
"""The value of a tube's field where the tube is farther away than this."""
_STEP_MM = 2.5
_BEND_MM = 6.0
_BEND_LENGTH_MM = 90.0


@dataclass(frozen=True, eq=False)
class Lattice:
    """The cells of the lattice and their reference coordinates.

    Attributes:
        start_mm: centre of the first cell ``(x, y, z)`` in the phantom's world.
        step_mm: distance of the cells ``(x, y, z)``.
        scale: the patient's scale ``(x, y, z)``.
        bend: displacement of the reference body against the scaled world, ``(3, z, y, x)``.
        body: reference coordinates x, y, z of every cell, ``(3, z, y, x)``.
    """

    start_mm: FloatArray
    step_mm: FloatArray
    scale: FloatArray
    bend: Field
    body: Field

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of cells ``(z, y, x)``."""
        z, y, x = self.body.shape[1:]
        return z, y, x

    @property
    def mean_scale(self) -> float:
        """One factor from reference to world distances, where a surface has no direction."""
        return float(np.mean(self.scale))

    def sample(self, field: Field, points_mm: npt.ArrayLike) -> FloatArray:
        """Interpolate the field at world points ``(..., 3)``; its outermost cells continue."""
        at = (np.asarray(points_mm) - self.start_mm) / self.step_mm
        top = np.asarray(self.shape[::-1]) - 1
        at = np.clip(at, 0, top)
        # trilinear: the lower of the eight cells around each point, and the fraction beyond it
        low = np.minimum(at.astype(np.intp), np.maximum(top - 1, 0))
        part = at - low
        total = np.zeros(at.shape[:-1])
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part), axis=-1)
            x, y, z = np.moveaxis(np.minimum(low + corner, top), -1, 0)
            total += weight * field[z, y, x]
        return total

    def gradient(self, field: Field, points_mm: npt.ArrayLike) -> FloatArray:
        """Compute the unit direction ``(..., 3)`` in which the field grows fastest."""
        points = np.asarray(points_mm, dtype=np.float64)
        # central differences over one cell to either side
        steps = np.eye(3) * self.step_mm
        slopes = [self.sample(field, points + s) - self.sample(field, points - s) for s in steps]
        slope = np.stack(slopes, axis=-1) / self.step_mm
        return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), 1e-6))

    def cells(self, chosen: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the world points ``(n, 3)`` of the chosen cells' centres."""
        index = np.argwhere(chosen)[:, ::-1]
        return np.asarray(self.start_mm + index * self.step_mm)

    def to_world(self, body_points: npt.ArrayLike) -> FloatArray:
        """Convert reference points ``(..., 3)`` to world points: scaled, unbent to first order."""
        points = np.asarray(body_points, dtype=np.float64) * self.scale
        bend = [self.sample(part, points) for part in self.bend]
        return np.asarray(points - np.stack(bend, axis=-1) * self.scale)


def make_lattice(
    start_mm: FloatArray, size_mm: FloatArray, scale: Triple, rng: np.random.Generator
) -> Lattice:
    """Fill a box of the world from corner ``start_mm`` with a lattice; both ``(x, y, z)``."""
    counts = np.maximum(np.rint(size_mm / _STEP_MM).astype(int), 2)
    step = size_mm / counts
    start = start_mm + step / 2
    axes = [
        ((start[i] + np.arange(counts[i]) * step[i]) / scale[i]).astype(np.float32)
        for i in range(3)
    ]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    # every patient is bent differently: one random displacement per axis
    bend = np.stack(
        [_BEND_MM / 2 * smooth_noise(z.shape, step, _BEND_LENGTH_MM, rng) for _ in "xyz"]
    )
    body = np.stack([x, y, z]) + bend
    return Lattice(start, step, np.asarray(scale), bend, body)


def smooth_noise(
    shape: tuple[int, ...], step_mm: FloatArray, length_mm: float, rng: np.random.Generator
) -> Field:
    """Draw a random field ``(z, y, x)`` of unit deviation with features of ``length_mm``."""
    # independent numbers at knots `length_mm` apart, interpolated to the cells axis by axis
    ratios = np.asarray(step_mm)[::-1] / length_mm
    counts = [int((n - 1) * r) + 4 for n, r in zip(shape, ratios, strict=True)]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis in (2, 1, 0):
        field = _interpolated(field, axis, shape[axis], float(ratios[axis]))
    return field


def _interpolated(knots: Field, axis: int, count: int, ratio: float) -> Field:
    """Interpolate unit noise from knots to ``count`` cells of one axis by Catmull-Rom splines.

    The weights are scaled so that the deviation is 1 between the knots too.
    """
    at = np.arange(count) * ratio
    low = at.astype(np.intp)
    t = (at - low).astype(np.float32)
    # weights of the four knots around each cell, polynomials of the fraction t between the middle
    # two; the sum of their squares is the variance of the result
    taps = np.stack(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    )
    taps /= np.sqrt((taps**2).sum(axis=0))
    wide = [1, 1, 1]
    wide[axis] = count
    total = np.take(knots, low, axis) * taps[0].reshape(wide)
    for i in (1, 2, 3):
        total += np.take(knots, low + i, axis) * taps[i].reshape(wide)
    return np.asarray(total, dtype=np.float32)


def ellipsoid(lattice: Lattice, centre: Triple, radii: Triple, axis: Triple | None = None) -> Field:
    """Compute the distance to an ellipsoid; ``axis`` is the direction of its first radius."""
    offset = [lattice.body[i] - np.float32(centre[i]) for i in range(3)]
    if axis is not None:
        rotation = _basis(axis)
        offset = [sum(np.float32(row[i]) * offset[i] for i in range(3)) for row in rotation]
    # `near` is 1 on the surface; `near (near - 1) / slope` is the distance to first order, and
    # exact for a ball
    near = np.sqrt(sum((o / np.float32(r)) ** 2 for o, r in zip(offset, radii, strict=True)))
    slope = np.sqrt(sum((o / np.float32(r * r)) ** 2 for o, r in zip(offset, radii, strict=True)))
    distance = near * (near - 1) / np.maximum(slope, np.float32(1e-4))
    return np.asarray(distance * np.float32(lattice.mean_scale), dtype=np.float32)


def tube(lattice: Lattice, points: Sequence[Triple], radii: Sequence[float]) -> Field:
    """Compute the distance to a tube along reference points, its radius linear between them."""
    field = np.full(lattice.shape, _FAR_MM, dtype=np.float32)
    for i, ends in enumerate(np.array(pair, dtype=np.float64) for pair in pairwise(points)):
        start, stop = radii[i], radii[i + 1]
        # the cells near the segment, with a margin for the bend
        margin = max(start, stop) + _FAR_MM + 3 * _BEND_MM
        low = (ends.min(axis=0) - margin) * lattice.scale
        high = (ends.max(axis=0) + margin) * lattice.scale
        first = np.floor((low - lattice.start_mm) / lattice.step_mm).astype(int)
        last = np.ceil((high - lattice.start_mm) / lattice.step_mm).astype(int) + 1
        first, last = np.maximum(first, 0), np.minimum(last, lattice.shape[::-1])
        if np.any(first >= last):
            continue
        x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        # `part` is where along the segment, 0 to 1, each cell is nearest to it
        along = (ends[1] - ends[0]).astype(np.float32)
        offset = lattice.body[:, z, y, x] - ends[0].astype(np.float32)[:, None, None, None]
        part = np.tensordot(along, offset, axes=1) / np.float32(max(along @ along, 1e-6))
        part = np.clip(part, 0, 1)
        across = offset - along[:, None, None, None] * part
        distance = np.sqrt((across**2).sum(axis=0)) - (start + (stop - start) * part)
        near = field[z, y, x]
        np.minimum(near, distance * np.float32(lattice.mean_scale), out=near)
    return field


def joined(fields: Sequence[Field], soft_mm: float) -> Field:
    """Unite bodies; the creases between them are filled to a radius of about ``soft_mm``."""
    total = fields[0]
    for field in fields[1:]:
        # the smooth minimum of two distances: where they differ by less than soft_mm, both count
        bridge = np.maximum(soft_mm - np.abs(total - field), 0) ** 2 / (4 * soft_mm)
        total = np.minimum(total, field) - bridge.astype(np.float32)
    return total


def _basis(axis: Triple) -> FloatArray:
    """Complete the axis to three perpendicular unit vectors, in rows."""
    first = np.asarray(axis) / np.linalg.norm(axis)
    other = np.cross(first, (0.0, 0.0, 1.0) if abs(first[2]) < 0.9 else (0.0, 1.0, 0.0))
    other /= np.linalg.norm(other)
    return np.stack([first, other, np.cross(first, other)])
