"""The FROC curve: sensitivity against false positives a scan, from scores alone.

It does not know what a hit is, nor where the scores come from; `evaluation.candidates` and
`evaluation.nodules` decide that. Every point of the curve is one threshold that could be set:
candidates of equal score are taken or left together, nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray

IntArray = npt.NDArray[np.int64]

RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which the challenge reads the sensitivity; the CPM is their mean."""

TARGETS: tuple[float, ...] = (0.90, 0.95, 0.972, 0.99)
"""Sensitivities at which the false positives a scan are read."""

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Scored:
    """What an FROC is made of.

    Attributes:
        nodule_score: ``(n,)`` the highest score of a candidate that hit the nodule, ``-inf``
            where none did.
        nodule_group: ``(n,)`` the patient or scan of each nodule, counted from 0.
        false_score: ``(m,)`` the scores of the false positives.
        false_scan: ``(m,)`` the scan of each false positive, counted from 0.
        scans: how many scans there are, those without any false positive included.
        paired: whether nodules and false positives come of the same scans, so that
            ``nodule_group`` counts the same scans as ``false_scan``.
    """

    nodule_score: FloatArray
    nodule_group: IntArray
    false_score: FloatArray
    false_scan: IntArray
    scans: int
    paired: bool

    def __post_init__(self) -> None:
        if self.nodule_score.shape != self.nodule_group.shape or self.nodule_score.size == 0:
            raise ValueError(f"{self.nodule_score.shape} nodule scores, at least one is needed")
        if self.false_score.shape != self.false_scan.shape:
            raise ValueError(f"{self.false_score.shape} scores, {self.false_scan.shape} scans")
        if self.scans < 1 or (self.false_scan.size and self.false_scan.max() >= self.scans):
            raise ValueError(f"{self.scans} scans do not cover {self.false_scan}")
        if np.isnan(self.nodule_score).any() or not np.isfinite(self.false_score).all():
            raise ValueError("a score is not a number")

    @property
    def groups(self) -> int:
        """How many patients (or scans) the nodules are of."""
        return self.scans if self.paired else int(self.nodule_group.max()) + 1


@dataclass(frozen=True, eq=False)
class Curve:
    """An FROC curve from the highest threshold down.

    All ``(k + 1,)``; the first point is the threshold ``inf``, where nothing is marked.
    """

    threshold: FloatArray
    sensitivity: FloatArray
    false_per_scan: FloatArray


@dataclass(frozen=True, eq=False)
class Ranking:
    """All marks sorted by falling score once, so that resampling needs two sums and no sort."""

    order: IntArray
    ends: IntArray
    threshold: FloatArray


def rank(scored: Scored) -> Ranking:
    """The marks (hit nodules first, then false positives) by falling score, ties together."""
    score = np.concatenate([scored.nodule_score, scored.false_score])
    order = np.argsort(-score, kind="stable")
    order = order[: int(np.isfinite(score).sum())]
    ranked = score[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: ranked.size])
    return Ranking(order, ends, ranked[ends])


def froc(scored: Scored, ranking: Ranking | None = None) -> Curve:
    """The FROC curve of `scored`, every nodule and every scan counting once."""
    every_nodule = np.ones(scored.nodule_score.size)
    every_scan = np.ones(scored.scans)
    return weighted_froc(scored, ranking or rank(scored), every_nodule, every_scan)


def weighted_froc(
    scored: Scored, ranking: Ranking, nodule_weight: FloatArray, scan_weight: FloatArray
) -> Curve:
    """The curve where nodule i counts ``nodule_weight[i]`` times and scan j ``scan_weight[j]``.

    Raises:
        ValueError: no nodule or no scan has a weight.
    """
    nodules, scans = nodule_weight.sum(), scan_weight.sum()
    if nodules <= 0 or scans <= 0:
        raise ValueError(f"nodules weigh {nodules} and scans {scans}: nothing to count")
    hits = np.concatenate([nodule_weight, np.zeros(scored.false_score.size)])[ranking.order]
    falses = np.concatenate([np.zeros(nodule_weight.size), scan_weight[scored.false_scan]])
    sensitivity = np.cumsum(hits)[ranking.ends] / nodules
    false_per_scan = np.cumsum(falses[ranking.order])[ranking.ends] / scans
    return Curve(
        np.append(np.inf, ranking.threshold),
        np.append(0.0, sensitivity),
        np.append(0.0, false_per_scan),
    )


def sensitivity_at(curve: Curve, rates: tuple[float, ...] = RATES) -> FloatArray:
    """The highest sensitivity that costs at most each of `rates` false positives a scan."""
    limit = np.asarray(rates) + _ROUNDING
    return curve.sensitivity[np.searchsorted(curve.false_per_scan, limit, side="right") - 1]


def false_positives_at(curve: Curve, targets: tuple[float, ...] = TARGETS) -> FloatArray:
    """The fewest false positives a scan that reach each sensitivity; ``inf`` where none does."""
    place = np.searchsorted(curve.sensitivity, np.asarray(targets) - _ROUNDING, side="left")
    return np.append(curve.false_per_scan, np.inf)[place]


def threshold_at(curve: Curve, targets: tuple[float, ...] = TARGETS) -> FloatArray:
    """The threshold that belongs to `false_positives_at`; ``-inf`` where none reaches it."""
    place = np.searchsorted(curve.sensitivity, np.asarray(targets) - _ROUNDING, side="left")
    return np.append(curve.threshold, -np.inf)[place]


def threshold_within(curve: Curve, rates: tuple[float, ...] = RATES) -> FloatArray:
    """The highest threshold with the sensitivity of `sensitivity_at`; ``inf`` where that is 0."""
    return threshold_at(curve, tuple(sensitivity_at(curve, rates).tolist()))
