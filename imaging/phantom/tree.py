"""Branching trees that fill a space: airways, arteries and veins of one lobe.

After Kitaoka, Takaki and Suki (J Appl Physiol 87:2207-2217, 1999): a branch serves a region; it
grows towards the region's centre, the region is split in two by a plane that holds the branch,
and a daughter grows into each part. A branch's radius follows from how many ends it serves
(Murray's cube law).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imaging.volume import FloatArray

_EXPONENT = 3.0
_REACH = (0.3, 0.48)
_SHARE = (0.22, 0.78)
_PIECE_MM = 7.0
_BEND = 0.28
_FADE = 0.5  # a last branch thins out to this many "ends"


@dataclass(frozen=True, eq=False)
class Tree:
    """Straight pieces of branches.

    Attributes:
        points: ``(n, 2, 3)`` world mm of both ends of every piece.
        along: ``(n, 2, 3)`` unit direction of the branch there.
        ends: ``(n, 2)`` how many ends the branch serves there; below 1 where it fades out.
    """

    points: FloatArray
    along: FloatArray
    ends: FloatArray

    def radii(self, terminal_mm: float) -> FloatArray:
        """Radius in mm at both ends of every piece ``(n, 2)``, ``terminal_mm`` of a last branch."""
        return np.asarray(terminal_mm * self.ends ** (1 / _EXPONENT))


@dataclass(frozen=True, eq=False)
class _Branch:
    """A branch yet to grow: where, in which direction, and the points that it serves."""

    start: FloatArray
    heading: FloatArray
    points: FloatArray


@dataclass(frozen=True, eq=False)
class _Grown:
    """A branch as it grew: a quadratic Bezier curve and the ends served at both of its ends."""

    curve: FloatArray
    ends: tuple[float, float]


def grow(
    root: FloatArray, heading: FloatArray, points: FloatArray, rng: np.random.Generator
) -> Tree:
    """The tree from ``root`` (3,), along ``heading`` (3,) at first, to every point ``(n, 3)``."""
    grown: list[_Grown] = []
    pending = [_Branch(root, _unit(heading), points)] if len(points) else []
    while pending:
        branch = pending.pop()
        stop, parts = _split(branch, rng)
        length = np.sqrt(((stop - branch.start) ** 2).sum())
        bend = branch.start + branch.heading * (length * _BEND)
        least = float(max((len(p) for p in parts), default=_FADE))
        grown.append(
            _Grown(np.array([branch.start, bend, stop]), (float(len(branch.points)), least))
        )
        pending += [_Branch(stop, _unit(stop - bend), part) for part in parts]
    return _straightened(grown)


def joined_trees(trees: Sequence[Tree]) -> Tree:
    """All pieces of several trees as one."""
    if not trees:
        return Tree(np.empty((0, 2, 3)), np.empty((0, 2, 3)), np.empty((0, 2)))
    return Tree(
        np.concatenate([t.points for t in trees]),
        np.concatenate([t.along for t in trees]),
        np.concatenate([t.ends for t in trees]),
    )


def _split(branch: _Branch, rng: np.random.Generator) -> tuple[FloatArray, list[FloatArray]]:
    """Where the branch ends, and the points that each of its daughters serves."""
    points = branch.points
    if len(points) == 1:
        return np.asarray(points[0]), []
    way = points.mean(axis=0) - branch.start
    stop = branch.start + way * rng.uniform(*_REACH)
    along = _unit(way)
    across = points - stop
    across = across - np.outer(across @ along, along)
    order = np.argsort(across @ _widest(across), kind="stable")
    cut = min(max(round(len(points) * rng.uniform(*_SHARE)), 1), len(points) - 1)
    return stop, [points[order[:cut]], points[order[cut:]]]


def _widest(across: FloatArray) -> FloatArray:
    """The direction in which the points lie farthest apart."""
    if len(across) == 2:
        return np.asarray(across[1] - across[0])
    return np.asarray(np.linalg.eigh(across.T @ across)[1][:, -1])


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(length, 1e-9))


def _straightened(grown: Sequence[_Grown]) -> Tree:
    """All branches in straight pieces, a longer branch in more of them."""
    if not grown:
        return joined_trees([])
    curves = np.stack([g.curve for g in grown])
    ends = np.array([g.ends for g in grown])
    length = np.linalg.norm(curves[:, 2] - curves[:, 0], axis=1)
    counts = np.clip(np.ceil(length / _PIECE_MM), 1, 8).astype(int)
    parts = [_pieces(curves[counts == n], ends[counts == n], n) for n in np.unique(counts).tolist()]
    return joined_trees(parts)


def _pieces(curves: FloatArray, ends: FloatArray, count: int) -> Tree:
    """Curves ``(n, 3, 3)`` in ``count`` pieces each, in all ``n * count``."""
    t = np.linspace(0, 1, count + 1)[:, None]
    start, bend, stop = (curves[:, i, None] for i in range(3))
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
    along = _unit((1 - t) * (bend - start) + t * (stop - bend))
    served = ends[:, :1] + t[:, 0] * (ends[:, 1:] - ends[:, :1])
    pairs = [np.stack([a[:, :-1], a[:, 1:]], axis=2) for a in (line, along, served)]
    points, directions, served = (p.reshape(-1, *p.shape[2:]) for p in pairs)
    return Tree(points, directions, served)
