"""Distance fields of simple bodies on a coarse lattice over the field of view.

A distance field is float32 ``(z, y, x)`` in mm, negative inside. It is smooth where the image is
sharp: a lattice of 2.5 mm holds the surfaces of the chest well enough to draw them at any finer
spacing. Points are ``(x, y, z)``. Anatomy is written in the *reference body*: mm of one adult,
origin on the midline at the height of the carina, axes as in the patient (x to the left, y to the
back, z to the head). The patient is the reference body scaled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, Triple

Field = npt.NDArray[np.float32]

_FAR_MM = 25.0
"""The value of a tube's field where the tube is farther away than this."""
_STEP_MM = 2.5


@dataclass(frozen=True, eq=False)
class Lattice:
    """The cells of the lattice and their reference coordinates.

    Attributes:
        shape: number of cells ``(z, y, x)``.
        start_mm: centre of the first cell ``(x, y, z)`` in the phantom's world.
        step_mm: distance of the cells ``(x, y, z)``.
        scale: the patient's scale ``(x, y, z)``.
        axes: reference coordinates x ``(1, 1, n)``, y ``(1, n, 1)`` and z ``(n, 1, 1)``.
    """

    shape: tuple[int, int, int]
    start_mm: FloatArray
    step_mm: FloatArray
    scale: FloatArray
    axes: tuple[Field, Field, Field]

    def sample(self, field: Field, points_mm: npt.ArrayLike) -> FloatArray:
        """Interpolate the field at world points ``(..., 3)``; its outermost cells continue."""
        top = np.asarray(self.shape[::-1]) - 1
        at = np.clip((np.asarray(points_mm) - self.start_mm) / self.step_mm, 0, top)
        # trilinear: the lower of the eight cells around each point, and the fraction beyond it
        low = at.astype(np.intp)
        part = at - low
        total = np.zeros(at.shape[:-1])
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part), axis=-1)
            x, y, z = np.moveaxis(np.minimum(low + corner, top), -1, 0)
            total += weight * field[z, y, x]
        return total

    def cells(self, chosen: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the world points ``(n, 3)`` of the chosen cells' centres."""
        return np.asarray(self.start_mm + np.argwhere(chosen)[:, ::-1] * self.step_mm)


def make_lattice(start_mm: FloatArray, size_mm: FloatArray, scale: Triple) -> Lattice:
    """Fill a box of the world from corner ``start_mm`` with a lattice; both ``(x, y, z)``."""
    counts = np.maximum(np.rint(size_mm / _STEP_MM).astype(int), 2)
    step = size_mm / counts
    start = start_mm + step / 2
    x, y, z = (
        ((start[i] + np.arange(counts[i]) * step[i]) / scale[i]).astype(np.float32)
        for i in range(3)
    )
    axes = (x[None, None, :], y[None, :, None], z[:, None, None])
    return Lattice((len(z), len(y), len(x)), start, step, np.asarray(scale), axes)


def smooth_noise(lattice: Lattice, length_mm: float, rng: np.random.Generator) -> Field:
    """Draw a random field ``(z, y, x)`` of unit deviation with features of ``length_mm``."""
    # independent numbers at knots `length_mm` apart, interpolated to the cells: first along z
    depth, rows, columns = lattice.shape
    counts = np.ceil(np.multiply(lattice.shape, lattice.step_mm[::-1]) / length_mm).astype(int) + 1
    knots = rng.standard_normal(counts, dtype=np.float32).reshape(counts[0], -1)
    tall = cv2.resize(knots, (knots.shape[1], depth), interpolation=cv2.INTER_CUBIC)
    planes = tall.reshape(depth, *counts[1:])
    field = np.stack(
        [cv2.resize(p, (columns, rows), interpolation=cv2.INTER_CUBIC) for p in planes]
    )
    return np.asarray(field / field.std(), dtype=np.float32)


def over_slope(value: npt.ArrayLike, lattice: Lattice, steepest: float = np.inf) -> Field:
    """Divide the value by its own slope: to first order the distance to where it is zero.

    ``steepest`` bounds the slope from above where a height field drops steeply.
    """
    field = np.asarray(value, dtype=np.float32)
    slopes = np.gradient(field, *lattice.step_mm[::-1].tolist())
    slope = np.sqrt(sum(s * s for s in slopes))
    return np.asarray(field / np.clip(slope, 2e-3, steepest), dtype=np.float32)


def ellipsoid(lattice: Lattice, centre: Triple, radii: Triple) -> Field:
    """Compute the distance to an ellipsoid."""
    offsets = [a - np.float32(c) for a, c in zip(lattice.axes, centre, strict=True)]
    near = np.sqrt(sum((o / np.float32(r)) ** 2 for o, r in zip(offsets, radii, strict=True)))
    # `near (near - 1) / slope` is the distance to first order, and exact for a ball
    slope = np.sqrt(sum((o / np.float32(r**2)) ** 2 for o, r in zip(offsets, radii, strict=True)))
    return np.asarray(near * (near - 1) / np.maximum(slope, 1e-4), dtype=np.float32)


def tube(lattice: Lattice, points: Sequence[Triple], radii: Sequence[float]) -> Field:
    """Compute the distance to a tube along reference points, its radius linear between them."""
    field = np.full(lattice.shape, _FAR_MM, dtype=np.float32)
    for (start, stop), (thick, thin) in zip(pairwise(points), pairwise(radii), strict=True):
        # the cells near the segment, and their offsets from its start
        reach = max(thick, thin) + _FAR_MM
        box, offsets = [], []
        for axis, a, b in zip(lattice.axes, start, stop, strict=True):
            near = np.flatnonzero((axis > min(a, b) - reach) & (axis < max(a, b) + reach))
            box.append(slice(near[0], near[-1] + 1) if near.size else slice(0))
            offsets.append(axis.take(near, axis.shape.index(axis.size)) - np.float32(a))
        along = np.subtract(stop, start).astype(np.float32)
        # `part` is where along the segment, 0 to 1, each cell is nearest to it
        part = sum(o * a for o, a in zip(offsets, along, strict=True)) / (along @ along)
        part = np.clip(part, 0, 1)
        away = sum((o - a * part) ** 2 for o, a in zip(offsets, along, strict=True))
        inside = field[box[2], box[1], box[0]]
        np.minimum(inside, np.sqrt(away) - (thick + (thin - thick) * part), out=inside)
    return field


def joined(fields: Sequence[Field], soft_mm: float) -> Field:
    """Unite bodies; the creases between them are filled to a radius of about ``soft_mm``."""
    total = fields[0]
    for field in fields[1:]:
        # the smooth minimum of two distances: where they differ by less than soft_mm, both count
        bridge = np.maximum(soft_mm - np.abs(total - field), 0) ** 2 / (4 * soft_mm)
        total = np.minimum(total, field) - bridge.astype(np.float32)
    return total
