"""Reads validation cases, and fits logistic regressions and thresholds on them.

Cases are read by the artifacts that will serve, through the runtime. Test cases are never opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.runtime.detection import Candidate
from models.runtime.screener import Screener
from models.runtime.second_reader import SecondReader
from models.runtime.sigmoid import sigmoid

if TYPE_CHECKING:
    # imports torch, which readers of cases can do without
    from models.training.data import Box, Piece

FACE = 6
"""False positives this near to a cube's face, in voxels, are ignored: the padding is mirrored."""

CUBE_FALSE_POSITIVES = 6
"""The strongest false positives of a cube that are read; the others would be dismissed."""

FINAL_FALSE_POSITIVES = 0.1
ALONE_FALSE_POSITIVES = 1.0
"""False positives per scan of the merged threshold and of the edge's own. Findings may be few:
what is less certain is a possible finding."""

POSSIBLE_FALSE_POSITIVES = 3.0
"""False candidates per scan in both lists, findings and possible findings."""

REGIONS = 12.0
"""False candidates that are sent for a scan, on average."""

TAIL = 2
"""The strongest false positives a scan, from which the rate of rarer ones is estimated."""

REPORT_MARGIN = 2.0
"""The distance of ``report``, in logits, above the highest edge score of a false candidate that is
rejected by a verdict: other patients have higher ones than those of validation."""

CLOUD_QUANTILE = 0.9
"""The cloud's logit counts up to this quantile of validation's nodules: the few above it do not
tell how much more certain a higher logit is."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Validation candidates: the logit of each from the edge and from the cloud, and the truth.

    ``missed`` nodules were never proposed; ``scans`` is the amount of lung that the false positives
    come from: those of ``counted`` candidates, or all if it is empty. ``patient`` is that of each
    candidate, ``missed_patient`` that of each missed nodule; both may be empty.
    """

    edge: FloatArray
    cloud: FloatArray
    nodule: np.ndarray
    missed: int
    scans: float
    patient: tuple[str, ...] = ()
    missed_patient: tuple[str, ...] = ()
    counted: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def false(self) -> np.ndarray:
        """Which candidates are the false positives of ``scans`` scans, ``(n,)``."""
        return ~self.nodule & self.counted if self.counted.size else ~self.nodule


def gather(
    screener: Screener,
    reader: SecondReader,
    cubes: Sequence[Piece],
    patients: Sequence[str],
    scans: Sequence[Box] = (),
) -> Cases:
    """Read the best candidate of each nodule, and false positives of cubes and scans.

    The lung in cubes comes from many more scanners than the few whole scans. But around a nodule
    there are more candidates than elsewhere, and some are nodules of which nobody is sure. So where
    there are scans, their false positives alone count for rates a scan. ``patients`` is the patient
    of each cube; a scan counts as a patient by its name.
    """
    # a row for each candidate: logit of the edge, of the cloud, nodule or not, patient
    rows: list[tuple[float, float, bool, str]] = []
    missed: list[str] = []
    for cube, patient in zip(cubes, patients, strict=True):
        # of a cube: its nodule, if a candidate lies in it, and its strongest false positives
        found = screener.screen(Preprocessed(cube.voxels, Geometry()))
        hits = [c for c in found if _hits(c, cube.nodules[:1], 0.5)][:1]
        missed += [] if hits else [patient]
        rows += [(*pair, True, patient) for pair in _read(reader, cube, hits)]
        false = _false_positives(found, cube, FACE)[:CUBE_FALSE_POSITIVES]
        rows += [(*pair, False, patient) for pair in _read(reader, cube, false)]
    for scan in scans:
        found = screener.screen(scan.box)
        for nodule in scan.piece.nodules:
            hits = [c for c in found if _hits(c, nodule[None], 0.5)][:1]
            missed += [] if hits else [scan.name]
            rows += [(*pair, True, scan.name) for pair in _read(reader, scan.piece, hits)]
        false = _false_positives(found, scan.piece, 0)
        rows += [(*pair, False, scan.name) for pair in _read(reader, scan.piece, false)]
    edge, cloud, nodule, owner = zip(*rows, strict=True)
    # without a scan: the air (below -500 HU) in the cubes without their faces, of which 4 litres,
    # as in one pair of lungs, count as a scan
    inner = (slice(FACE, -FACE),) * 3
    air = sum(int((cube.voxels[inner] < 91).sum()) for cube in cubes)
    counted = np.isin(owner, [scan.name for scan in scans]) if scans else np.zeros(0, bool)
    return Cases(
        np.array(edge), np.array(cloud), np.array(nodule), len(missed),
        len(scans) or air / 4.0e6, owner, tuple(missed), counted,
    )  # fmt: skip


def _false_positives(found: Sequence[Candidate], piece: Piece, face: int) -> list[Candidate]:
    # a false positive is inside the faces and at least 5 voxels away from every mark
    marks = np.concatenate([piece.nodules, piece.ignored])
    size = np.array(piece.voxels.shape)
    return [
        c
        for c in found
        if min(c.index_zyx) >= face
        and (np.array(c.index_zyx) < size - face).all()
        and not _hits(c, marks, 0.5, 5.0)
    ]


def _read(
    reader: SecondReader, piece: Piece, candidates: Sequence[Candidate]
) -> list[tuple[float, float]]:
    """Return the logits of edge and cloud for each candidate."""
    if not candidates:
        return []
    rois = np.stack([cut_roi(piece.voxels, c.index_zyx, reader.roi_shape) for c in candidates])
    # in batches of eight, which bounds the memory
    parts = [reader.read(rois[i : i + 8]).probability for i in range(0, len(rois), 8)]
    chance = np.concatenate(parts)
    return [(_logit(c.score), _logit(float(p))) for c, p in zip(candidates, chance, strict=True)]


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))


def _hits(candidate: Candidate, marks: FloatArray, share: float, margin: float = 0.0) -> bool:
    away = np.linalg.norm(marks[:, :3] - candidate.index_zyx, axis=1)
    return bool((away < marks[:, 3] * share + margin).any())


def logistic(features: FloatArray, truth: np.ndarray, ridge: float = 1e-2) -> FloatArray:
    """Fit a logistic regression on ``(n, k)`` and return its weights ``(1 + k,)``, bias first.

    Both classes weigh the same, so that 0.5 lies where they are equally likely; targets are
    smoothed as by Platt (1999).
    """
    # a column of ones for the bias; smoothed targets; weights that sum to one half for each class
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    positives, negatives = truth.sum(), (~truth).sum()
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = np.where(truth, 0.5 / positives, 0.5 / negatives) * len(truth)
    penalty = np.diag([0.0] + [ridge * len(truth)] * features.shape[1])
    # Newton's method on the penalised log-likelihood; the bias is not penalised
    w = np.zeros(x.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (weight * (chance - target)) + penalty @ w
        curvature = (x * (weight * chance * (1 - chance))[:, None]).T @ x + penalty
        w = w - np.linalg.solve(curvature + 1e-9 * np.eye(len(w)), gradient)
    return w


def thresholds(edge: FloatArray, merged: FloatArray, cases: Cases) -> dict[str, float]:
    """Return the five thresholds on calibrated scores.

    Each of four leaves its number of false positives a scan: ``dismiss`` `REGIONS`, ``alone``
    `ALONE_FALSE_POSITIVES`, ``possible`` `POSSIBLE_FALSE_POSITIVES`, ``final``
    `FINAL_FALSE_POSITIVES`. From ``report`` on, the edge decides alone: by `REPORT_MARGIN`, no
    verdict brought such a false positive below ``final``.
    """
    false = cases.false
    dismiss = _leaving(edge, false, REGIONS * cases.scans)
    alone = max(_leaving(edge, false, ALONE_FALSE_POSITIVES * cases.scans), dismiss)
    possible = _leaving(merged, false, POSSIBLE_FALSE_POSITIVES * cases.scans)
    allowed = FINAL_FALSE_POSITIVES * cases.scans
    final = _leaving(merged, false, allowed)
    if allowed < 1:
        final = max(_rare(merged, false, allowed, cases.scans), possible)
    rejected = float(edge[~cases.nodule & (merged < final)].max(initial=0.0))
    report = max(float(sigmoid(np.array(_logit(rejected) + REPORT_MARGIN))), alone)
    names = ("dismiss", "report", "alone", "possible", "final")
    values = (dismiss, report, alone, possible, final)
    return {name: round(value, 6) for name, value in zip(names, values, strict=True)}


def _leaving(score: FloatArray, false: np.ndarray, allowed: float) -> float:
    """Return the lowest threshold that leaves ``allowed`` of the false positives, 0 for all."""
    ranked = np.sort(score[false])[::-1]
    count = int(allowed)
    return _just_above(score, float(ranked[count])) if count < len(ranked) else 0.0


def _rare(score: FloatArray, false: np.ndarray, allowed: float, scans: float) -> float:
    """Return the threshold that leaves ``allowed`` false positives, fewer than can be counted.

    The logits above a high one are taken for exponential (peaks over a threshold: Coles, An
    Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4).
    """
    logits = np.array([_logit(one) for one in np.sort(score[false])[::-1]])
    count = min(int(TAIL * scans), len(logits) - 1)
    if count < 1:
        return _leaving(score, false, 0)
    excess = float((logits[:count] - logits[count]).mean())
    return float(sigmoid(logits[count] + excess * np.log(count / allowed)))


def _just_above(score: FloatArray, value: float) -> float:
    """Return the middle between ``value`` and the next score above it, or 1."""
    return (value + float(score[score > value].min(initial=1.0))) / 2
