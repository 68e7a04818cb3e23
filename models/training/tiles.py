"""Reads a lung box as overlapping tiles, each cut as the cubes of nodules are.

A cube of a nodule ends 25 mm from it. A network reads it otherwise than a whole lung. So where
nodules in cubes are compared with false positives, these are read in tiles of the same size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from imaging.volume import FloatArray
from models.data.cubes import SIDE_MM
from models.runtime.detection import Peaks, strongest

TILE = SIDE_MM
"""Side of a tile in voxels of 1 mm, as that of the cubes."""

CORE = 36
"""Side of the middle part of a tile, whose peaks count: each place lies in one tile's core."""


def tiles(shape: Sequence[int]) -> Iterator[tuple[tuple[slice, slice, slice], FloatArray]]:
    """Yield the place of each tile in a box of ``shape``, and its core (2, 3) in the tile.

    The core holds its first and the voxel after its last, ``(z, y, x)``. A tile at the box's face
    has its core up to that face. An axis shorter than a tile has one tile.
    """
    for parts in product(*(_spans(n) for n in shape)):
        z, y, x = (slice(start, stop) for start, stop, _, _ in parts)
        yield (z, y, x), np.array([[low for *_, low, _ in parts], [high for *_, high in parts]])


def of_tiles(shape: Sequence[int], found: Sequence[Peaks], most: int) -> Peaks:
    """Return the strongest peaks in the cores of a box's tiles, given those of each, in order."""
    kept = []
    for peaks, (place, (low, high)) in zip(found, tiles(shape), strict=True):
        at = peaks.index_zyx
        keep = (at >= low - 0.5).all(1) & (at < high - 0.5).all(1)
        start = np.array([one.start for one in place])
        kept.append(replace(peaks, index_zyx=at + start).at(keep))
    return strongest(kept, most)


def tile_around(shape: Sequence[int], index_zyx: FloatArray) -> tuple[slice, slice, slice]:
    """Return the place of the tile whose core holds an index of the box."""
    z, y, x = (
        next(slice(start, stop) for start, stop, _, high in _spans(n) if at < start + high - 0.5)
        for n, at in zip(shape, np.minimum(index_zyx, np.array(shape) - 0.6), strict=True)
    )
    return z, y, x


def _spans(size: int) -> list[tuple[int, int, int, int]]:
    """Return start and stop of each tile along an axis, and its core within the tile."""
    margin = (TILE - CORE) // 2
    last = max(size - TILE, 0)
    starts = [*range(0, last, CORE), last]
    # a core ends where the next tile's begins
    edges = [0, *(start + margin for start in starts[1:]), size]
    return [
        (start, min(start + TILE, size), low - start, high - start)
        for start, low, high in zip(starts, edges[:-1], edges[1:], strict=True)
    ]
