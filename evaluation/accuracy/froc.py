"""The FROC curve: sensitivity against false positives a scan, and the rules of LUNA16.

Every point of the curve is one threshold that could be set: candidates of equal score are taken or
left together, nothing is interpolated.

The rules of LUNA16 (Setio et al., Medical Image Analysis 42:1-13, 2017, and the challenge's own
script): a candidate hits a nodule when it is nearer to its centre than half the diameter; a nodule
counts once, at the highest score that hit it, further hits are doubles; candidates on an excluded
finding are ignored; of every scan the 100 candidates with the highest scores count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.data.folder import UNKNOWN_RADIUS_MM

IntArray = npt.NDArray[np.int64]

RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which the challenge reads the sensitivity; the CPM is their mean."""

TARGETS: tuple[float, ...] = (0.90, 0.95, 0.972, 0.99)
"""Sensitivities at which the false positives a scan are read."""

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of nodules ``(n,)`` and of false positives ``(m,)`` that an FROC is made of.

    A nodule has the highest score of a candidate that hit it, or ``-inf``, and a patient or scan as
    group. Groups and scans are counted from 0; ``scans`` includes those without false positives. If
    ``paired``, ``nodule_group`` counts the same scans as ``false_scan``. Of ``refused`` scans the
    nodules are missed; they have no false positives, and do not count in a rate a scan.
    """

    nodule_score: FloatArray
    nodule_group: IntArray
    false_score: FloatArray
    false_scan: IntArray
    scans: int
    paired: bool
    refused: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.nodule_score.shape != self.nodule_group.shape or self.nodule_score.size == 0:
            raise ValueError(f"{self.nodule_score.shape} nodule scores, at least one is needed")
        if self.false_score.shape != self.false_scan.shape:
            raise ValueError(f"{self.false_score.shape} scores, {self.false_scan.shape} scans")
        if self.scans < 1 or (self.false_scan.size and self.false_scan.max() >= self.scans):
            raise ValueError(f"{self.scans} scans do not cover {self.false_scan}")
        if np.isnan(self.nodule_score).any() or not np.isfinite(self.false_score).all():
            raise ValueError("a score is not a number")

    @classmethod
    def of(
        cls,
        nodule_score: FloatArray,
        nodule_group: npt.NDArray[np.integer],
        false_scores: Sequence[FloatArray],
        *,
        paired: bool,
        refused: tuple[int, ...] = (),
    ) -> "Scored":
        """Join nodules with the false positives of every scan, one array of scores each."""
        counts = [scores.size for scores in false_scores]
        return cls(
            nodule_score=nodule_score,
            nodule_group=nodule_group.astype(np.int64),
            false_score=np.concatenate(false_scores),
            false_scan=np.repeat(np.arange(len(false_scores)), counts),
            scans=len(false_scores),
            paired=paired,
            refused=refused,
        )

    @property
    def groups(self) -> int:
        """Return the number of patients (or scans) of the nodules."""
        return self.scans if self.paired else int(self.nodule_group.max()) + 1

    def read(self, scan_weight: FloatArray) -> float:
        """Return how many scans were read, each counted ``scan_weight`` ``(scans,)`` times."""
        return float(scan_weight.sum() - scan_weight[list(self.refused)].sum())

    @cached_property
    def ranking(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the order by falling score, the ends of equal scores, and the score at each end.

        Hit nodules come first, then false positives. Resampling needs two sums and no sort.
        """
        score = np.concatenate([self.nodule_score, self.false_score])
        order = np.argsort(-score, kind="stable")
        order = order[: int(np.isfinite(score).sum())]
        ranked = score[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: ranked.size])
        return order, ends, ranked[ends]


@dataclass(frozen=True, eq=False)
class Curve:
    """An FROC curve from the highest threshold down.

    All ``(k + 1,)``; the first point is the threshold ``inf``, with no detection.
    """

    threshold: FloatArray
    sensitivity: FloatArray
    false_per_scan: FloatArray


def froc(scored: Scored) -> Curve:
    """Return the FROC curve; every nodule and every scan counts once."""
    return weighted_froc(scored, np.ones(scored.nodule_score.size), np.ones(scored.scans))


def weighted_froc(scored: Scored, nodule_weight: FloatArray, scan_weight: FloatArray) -> Curve:
    """Return the curve with nodule i counted ``nodule_weight[i]`` times, and scans likewise.

    If no scan was read there is no false positive either.
    """
    nodules, scans = nodule_weight.sum(), max(scored.read(scan_weight), 1.0)
    if nodules <= 0:
        raise ValueError(f"nodules weigh {nodules}: nothing to count")
    # Running sums along the ranking, read at the last of equal scores.
    order, ends, threshold = scored.ranking
    hits = np.concatenate([nodule_weight, np.zeros(scored.false_score.size)])
    falses = np.concatenate([np.zeros(nodule_weight.size), scan_weight[scored.false_scan]])
    found = np.cumsum(hits[order])[ends] / nodules
    per_scan = np.cumsum(falses[order])[ends] / scans
    return Curve(np.append(np.inf, threshold), np.append(0.0, found), np.append(0.0, per_scan))


def sensitivity_at(curve: Curve, rates: tuple[float, ...] = RATES) -> FloatArray:
    """Return the highest sensitivity with at most each of ``rates`` false positives a scan."""
    limit = np.asarray(rates) + _ROUNDING
    return curve.sensitivity[np.searchsorted(curve.false_per_scan, limit, side="right") - 1]


def false_positives_at(curve: Curve, targets: tuple[float, ...] = TARGETS) -> FloatArray:
    """Return the fewest false positives a scan that reach each sensitivity, or ``inf``."""
    first = np.searchsorted(curve.sensitivity, np.asarray(targets) - _ROUNDING, side="left")
    return np.append(curve.false_per_scan, np.inf)[first]


def rate_name(rate: float) -> str:
    """Return a number of false positives per scan as people write it: 1/8, 1/4, 1/2, 1, 2, ..."""
    return {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}.get(rate, f"{rate:g}")


def match_scan(
    candidates: FloatArray, nodules: FloatArray, excluded: FloatArray
) -> tuple[FloatArray, FloatArray, int, int]:
    """Match ``candidates`` ``(k, 4)`` of one scan: x, y, z in mm and score.

    ``nodules`` ``(n, 4)`` and ``excluded`` ``(e, 4)`` are x, y, z and diameter in mm. Returned are
    the scores of nodules, ``-inf`` if missed, and of false positives; the numbers of ignored
    candidates and of doubles.
    """
    best = np.argsort(-candidates[:, 3], kind="stable")[:100]
    points, score = candidates[best, :3], candidates[best, 3]
    hits = _within(points, nodules)
    ignored = _within(points, excluded).any(axis=1) & ~hits.any(axis=1)
    nodule_score = np.where(hits, score[:, None], -np.inf).max(axis=0, initial=-np.inf)
    double = int(np.maximum(hits.sum(axis=0) - 1, 0).sum())
    false = ~(hits.any(axis=1) | ignored)
    return nodule_score, score[false], int(ignored.sum()), double


def _within(points: FloatArray, spheres: FloatArray) -> npt.NDArray[np.bool_]:
    radius = np.where(spheres[:, 3] < 0, UNKNOWN_RADIUS_MM, spheres[:, 3] / 2)
    distance = np.linalg.norm(points[:, None, :] - spheres[None, :, :3], axis=2)
    return np.asarray(distance < radius)
