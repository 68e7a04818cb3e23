"""Turning a volume so that its axes lie nearest to the patient's: left, back, head."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from imaging.volume import FloatArray, Geometry, HuArray


def to_patient_axes(hu: HuArray, geometry: Geometry) -> tuple[HuArray, Geometry]:
    """The same voxels at the same world points, with axes permuted and flipped.

    Afterwards x grows towards the patient's left, y to the back and z to the head, as nearly
    as the axes allow: nothing is resampled, an oblique volume stays oblique. Prone pictures,
    feet-first stacks and files in RAS order then all look alike to a network.
    """
    order = _nearest(geometry.direction)
    axes = tuple(2 - order[2 - axis] for axis in range(3))  # of the array, (z, y, x)
    direction = geometry.direction[:, order]
    z, y, x = (geometry.spacing_mm[axis] for axis in axes)
    turned = Geometry((z, y, x), geometry.origin_mm, direction)
    return _flipped(hu.transpose(axes), turned)


def _nearest(direction: FloatArray) -> list[int]:
    """For each of the world axes x, y, z the index axis (x, y, z) that lies nearest to it."""
    best = max(
        permutations(range(3)),
        key=lambda order: sum(abs(direction[world, axis]) for world, axis in enumerate(order)),
    )
    return list(best)


def _flipped(hu: HuArray, geometry: Geometry) -> tuple[HuArray, Geometry]:
    signs = np.where(np.diagonal(geometry.direction) < 0, -1, 1)  # of x, y, z
    backward = tuple(axis for axis in range(3) if signs[2 - axis] < 0)
    start = [hu.shape[axis] - 1 if axis in backward else 0 for axis in range(3)]
    x, y, z = (float(v) for v in geometry.to_world(start))
    turned = Geometry(geometry.spacing_mm, (x, y, z), geometry.direction * signs)
    return np.ascontiguousarray(np.flip(hu, backward)), turned
