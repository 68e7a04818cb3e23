"""Candidates against annotations under the rules of LUNA16, and the FROC that comes of it.

The rules (Setio et al., Medical Image Analysis 42:1-13, 2017, and the challenge's own script):
a candidate hits a nodule when it is nearer to its centre than half the diameter; a nodule counts
once, at the highest score that hit it, further hits are doubles; candidates on an excluded
finding are ignored; of every scan the 100 candidates with the highest scores count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.errors import BadTable
from evaluation.froc import IntArray, Scored
from evaluation.table import Table, read_table
from imaging.volume import FloatArray

CANDIDATES_PER_SCAN = 100
UNKNOWN_RADIUS_MM = 5.0
"""Radius of an excluded finding whose diameter is unknown (-1)."""

_PLACE = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True, eq=False)
class ScanMatch:
    """What became of one scan's candidates.

    ``nodule_score`` ``(n,)`` is ``-inf`` for a nodule that nothing hit; ``false_score`` ``(m,)``.
    """

    nodule_score: FloatArray
    false_score: FloatArray
    ignored: int
    double: int


@dataclass(frozen=True, eq=False)
class Challenge:
    """The whole set: what the FROC is made of, and the challenge's counts."""

    scored: Scored
    ignored: int
    double: int

    @property
    def counts(self) -> dict[str, int]:
        """``tp``, ``fn``, ``fp``, ``ignored``, ``double``, all at the lowest threshold."""
        hit = int(np.isfinite(self.scored.nodule_score).sum())
        return {
            "tp": hit,
            "fn": self.scored.nodule_score.size - hit,
            "fp": self.scored.false_score.size,
            "ignored": self.ignored,
            "double": self.double,
        }


def match_scan(candidates: FloatArray, nodules: FloatArray, excluded: FloatArray) -> ScanMatch:
    """What became of `candidates` ``(k, 4)``: x, y, z in mm and score.

    `nodules` ``(n, 4)`` and `excluded` ``(e, 4)`` are x, y, z and diameter in mm.
    """
    best = np.argsort(-candidates[:, 3], kind="stable")[:CANDIDATES_PER_SCAN]
    points, score = candidates[best, :3], candidates[best, 3]
    hits = _within(points, nodules)
    ignored = _within(points, excluded).any(axis=1) & ~hits.any(axis=1)
    nodule_score = np.where(hits, score[:, None], -np.inf).max(axis=0, initial=-np.inf)
    double = int(np.maximum(hits.sum(axis=0) - 1, 0).sum())
    false = ~(hits.any(axis=1) | ignored)
    return ScanMatch(nodule_score, score[false], int(ignored.sum()), double)


def challenge(candidates: Path, annotations: Path, excluded: Path, scans: Path) -> Challenge:
    """The challenge's matching of four CSV files.

    Raises:
        BadTable: a file cannot be read, lacks a column, holds a value that is no number, or
            names a scan that `scans` does not list.
    """
    listed = read_scan_list(scans)
    marks = _by_scan(candidates, "probability", listed)
    nodules = _by_scan(annotations, "diameter_mm", listed)
    ignore = _by_scan(excluded, "diameter_mm", listed)
    if not any(len(found) for found in nodules):
        raise BadTable(annotations, "holds no nodule: there is nothing to find")
    return _gather([match_scan(m, n, e) for m, n, e in zip(marks, nodules, ignore, strict=True)])


def read_scan_list(path: Path) -> list[str]:
    """The scans that a file lists, one a line, with or without the header ``seriesuid``.

    Raises:
        BadTable: the file cannot be read, lists nothing, or lists a scan twice.
    """
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(path, f"cannot be read ({error})") from error
    listed = [line for line in lines if line and line != "seriesuid"]
    twice = [uid for uid, times in Counter(listed).items() if times > 1]
    if not listed or twice:
        raise BadTable(path, f"lists scans twice: {twice}" if twice else "lists no scan")
    return listed


def _by_scan(path: Path, last: str, listed: list[str]) -> list[FloatArray]:
    table = read_table(path, ("seriesuid", *_PLACE, last))
    values = np.stack([table.numbers(name) for name in (*_PLACE, last)], axis=1)
    scan = _scan_numbers(table, listed)
    order = np.argsort(scan, kind="stable")
    starts = np.searchsorted(scan[order], np.arange(1, len(listed)))
    return np.split(values[order], starts)


def _scan_numbers(table: Table, listed: list[str]) -> IntArray:
    number = {uid: i for i, uid in enumerate(listed)}
    uids = table.text("seriesuid")
    for uid, line in zip(uids, table.lines, strict=True):
        if uid not in number:
            raise BadTable(table.path, f"scan {uid!r} is not in the list of scans", line)
    return np.array([number[uid] for uid in uids], dtype=np.int64)


def _within(points: FloatArray, spheres: FloatArray) -> npt.NDArray[np.bool_]:
    radius = np.where(spheres[:, 3] < 0, UNKNOWN_RADIUS_MM, spheres[:, 3] / 2)
    distance = np.linalg.norm(points[:, None, :] - spheres[None, :, :3], axis=2)
    return np.asarray(distance < radius)


def _gather(matches: list[ScanMatch]) -> Challenge:
    numbers = np.arange(len(matches))
    scored = Scored(
        nodule_score=np.concatenate([m.nodule_score for m in matches]),
        nodule_group=np.repeat(numbers, [m.nodule_score.size for m in matches]),
        false_score=np.concatenate([m.false_score for m in matches]),
        false_scan=np.repeat(numbers, [m.false_score.size for m in matches]),
        scans=len(matches),
        paired=True,
    )
    return Challenge(scored, sum(m.ignored for m in matches), sum(m.double for m in matches))
