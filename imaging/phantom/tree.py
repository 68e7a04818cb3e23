"""Grow branching trees that fill a space: airways, arteries and veins of one lobe.

After Kitaoka, Takaki and Suki (J Appl Physiol 87:2207-2217, 1999): a branch serves a region and
grows towards its centre; a plane through the branch splits the region in two, and a daughter
branch grows into each part. The radius of a branch follows from the number of ends that it serves
(Murray's cube law).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imaging.volume import FloatArray

_EXPONENT = 3.0
_REACH = (0.3, 0.48)
_SHARE = (0.22, 0.78)
_PIECE_MM = 7.0
_BEND = 0.28
_FADE = 0.5  # a last branch tapers to the radius of this many ends


@dataclass(frozen=True, eq=False)
class Tree:
    """Straight pieces of branches.

    Attributes:
        points: ``(n, 2, 3)`` world mm of both ends of every piece.
        along: ``(n, 2, 3)`` unit direction of the branch there.
        ends: ``(n, 2)`` number of ends that the branch serves there; below 1 where it tapers off.
    """

    points: FloatArray
    along: FloatArray
    ends: FloatArray

    def radii(self, terminal_mm: float) -> FloatArray:
        """Compute the radius in mm at both ends of every piece ``(n, 2)``.

        A branch that serves one end has the radius ``terminal_mm``.
        """
        return np.asarray(terminal_mm * self.ends ** (1 / _EXPONENT))


def grow(
    root: FloatArray, heading: FloatArray, points: FloatArray, rng: np.random.Generator
) -> Tree:
    """Grow a tree from ``root`` (3,), first along ``heading`` (3,), to every point ``(n, 3)``."""
    # of each grown branch: a quadratic Bezier curve, and the ends served at its start and stop
    curves: list[FloatArray] = []
    ends: list[tuple[float, float]] = []
    pending = [(root, _unit(heading), points)] if len(points) else []
    while pending:
        start, ahead, served = pending.pop()
        stop, parts = _split(start, served, rng)
        bend = start + ahead * (np.sqrt(((stop - start) ** 2).sum()) * _BEND)
        curves.append(np.array([start, bend, stop]))
        ends.append((len(served), max((len(p) for p in parts), default=_FADE)))
        pending += [(stop, _unit(stop - bend), part) for part in parts]
    return _straightened(np.array(curves).reshape(-1, 3, 3), np.array(ends).reshape(-1, 2))


def joined_trees(trees: Sequence[Tree]) -> Tree:
    """Join the pieces of several trees."""
    trees = [Tree(np.empty((0, 2, 3)), np.empty((0, 2, 3)), np.empty((0, 2))), *trees]
    points, along, ends = (
        np.concatenate([getattr(tree, name) for tree in trees])
        for name in ("points", "along", "ends")
    )
    return Tree(points, along, ends)


def _split(
    start: FloatArray, points: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, list[FloatArray]]:
    """Choose where a branch from ``start`` ends, and the points that each daughter serves."""
    if len(points) == 1:
        return np.asarray(points[0]), []
    to_centre = points.mean(axis=0) - start
    stop = start + to_centre * rng.uniform(*_REACH)
    # sort the points along the widest direction across the branch, the first principal component,
    # and cut at a random share
    along = _unit(to_centre)
    across = points - stop
    across = across - np.outer(across @ along, along)
    widest = across[1] - across[0]
    if len(across) > 2:
        widest = np.linalg.eigh(across.T @ across)[1][:, -1]
    order = np.argsort(across @ widest, kind="stable")
    cut = min(max(round(len(points) * rng.uniform(*_SHARE)), 1), len(points) - 1)
    return stop, [points[order[:cut]], points[order[cut:]]]


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(length, 1e-9))


def _straightened(curves: FloatArray, ends: FloatArray) -> Tree:
    """Cut all branches into straight pieces, longer branches into more of them."""
    length = np.linalg.norm(curves[:, 2] - curves[:, 0], axis=1)
    counts = np.clip(np.ceil(length / _PIECE_MM), 1, 8).astype(int)
    parts = [_pieces(curves[counts == n], ends[counts == n], n) for n in np.unique(counts).tolist()]
    return joined_trees(parts)


def _pieces(curves: FloatArray, ends: FloatArray, count: int) -> Tree:
    """Cut curves ``(n, 3, 3)`` into ``count`` pieces each, in all ``n * count``."""
    t = np.linspace(0, 1, count + 1)[:, None]
    start, bend, stop = (curves[:, i, None] for i in range(3))
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
    along = _unit((1 - t) * (bend - start) + t * (stop - bend))
    served = ends[:, :1] + t[:, 0] * (ends[:, 1:] - ends[:, :1])
    pairs = [np.stack([a[:, :-1], a[:, 1:]], axis=2) for a in (line, along, served)]
    points, directions, served = (p.reshape(-1, *p.shape[2:]) for p in pairs)
    return Tree(points, directions, served)
