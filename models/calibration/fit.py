"""Fits what turns the networks' outputs into decisions: calibration, merger and thresholds.

Everything is fitted on validation cases, read by the very artifacts that will serve, through
the runtime. Test cases are never opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.runtime.detection import Candidate
from models.runtime.screener import Screener
from models.runtime.second_reader import SecondReader

if TYPE_CHECKING:
    from models.training.data import Piece  # imports torch, which readers of cases can do without

FACE = 6
"""Voxels at a cube's faces in which an alarm does not count: there is mirror image beyond them."""

CUBE_ALARMS = 6
"""The strongest alarms of a cube that are read; the rest are as faint as dismissed ones."""

LUNG_MM3 = 4.0e6
"""Air of one pair of lungs. So much lung in cubes counts as one scan more."""

AIR_BELOW = 91
"""uint8 of -500 HU."""

MARGIN = 0.5
"""``dismiss`` is this part of the lowest edge score of a nodule that was proposed."""

FINAL_ALARMS = 1.0
ALONE_ALARMS = 5.0
"""False positives a scan at which the merged and the edge's own threshold are set."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Candidates of validation: each one's logit from the edge and from the cloud, and truth.

    ``missed`` nodules were never proposed; ``scans`` is how much lung the alarms come from, in
    scans. ``patient`` says whose each candidate is, ``missed_patient`` whose each missed nodule;
    both are empty where nobody knows.
    """

    edge: FloatArray
    cloud: FloatArray
    nodule: np.ndarray
    missed: int
    scans: float
    patient: tuple[str, ...] = ()
    missed_patient: tuple[str, ...] = ()


def gather(
    screener: Screener,
    reader: SecondReader,
    cubes: Sequence[Piece],
    scans: Sequence[tuple[Preprocessed, Piece]],
    patients: Sequence[str],
) -> Cases:
    """Reads cubes for their nodules (the best candidate of each), and all for false alarms.

    One or two whole scans know few scanners; the lung around the nodules of many patients does.
    ``patients`` says whose each cube is. Of a scan only what lies in the lungs counts.
    """
    rows: list[tuple[float, float, bool, str]] = []
    missed: list[str] = []
    for cube, patient in zip(cubes, patients, strict=True):
        found = screener.screen(Preprocessed(cube.voxels, Geometry()))
        hits = [c for c in found if _hits(c, cube.nodules[:1], 0.5)][:1]
        missed += [] if hits else [patient]
        rows += [(*pair, True, patient) for pair in _read(reader, cube, hits)]
        alarms = _alarms(found, cube, FACE)[:CUBE_ALARMS]
        rows += [(*pair, False, patient) for pair in _read(reader, cube, alarms)]
    for box, scan in scans:
        found = screener.screen(box)
        rows += [(*pair, False, "") for pair in _read(reader, scan, _alarms(found, scan, 0))]
    edge, cloud, nodule, owner = zip(*rows, strict=True)
    inner = (slice(FACE, -FACE),) * 3
    air = sum(int((cube.voxels[inner] < AIR_BELOW).sum()) for cube in cubes)
    scans_read = len(scans) + air / LUNG_MM3
    return Cases(
        np.array(edge), np.array(cloud), np.array(nodule), len(missed), scans_read,
        owner, tuple(missed),
    )  # fmt: skip


def _alarms(found: Sequence[Candidate], piece: Piece, face: int) -> list[Candidate]:
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
    """The logits of edge and cloud for each candidate."""
    if not candidates:
        return []
    rois = np.stack([cut_roi(piece.voxels, c.index_zyx, reader.roi_shape) for c in candidates])
    parts = [reader.read(rois[i : i + 8]).probability for i in range(0, len(rois), 8)]
    chance = np.concatenate(parts)
    return [(_logit(c.score), _logit(float(p))) for c, p in zip(candidates, chance, strict=True)]


def _hits(candidate: Candidate, marks: FloatArray, share: float, margin: float = 0.0) -> bool:
    away = np.linalg.norm(marks[:, :3] - candidate.index_zyx, axis=1)
    return bool((away < marks[:, 3] * share + margin).any())


def logistic(features: FloatArray, truth: np.ndarray, ridge: float = 1e-2) -> FloatArray:
    """Weights ``(1 + k,)``, bias first, of a logistic regression on ``(n, k)``; Newton's method.

    Both classes weigh the same, so that 0.5 lies where they are equally likely; targets are
    smoothed as Platt (1999) does.
    """
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    positives, negatives = truth.sum(), (~truth).sum()
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = np.where(truth, 0.5 / positives, 0.5 / negatives) * len(truth)
    penalty = np.diag([0.0] + [ridge * len(truth)] * features.shape[1])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (weight * (chance - target)) + penalty @ w
        curvature = (x * (weight * chance * (1 - chance))[:, None]).T @ x + penalty
        w = w - np.linalg.solve(curvature + 1e-9 * np.eye(len(w)), gradient)
    return w


def sigmoid(logit: FloatArray) -> FloatArray:
    """The probability of a logit, of any shape."""
    return np.asarray(1 / (1 + np.exp(-logit)))


def thresholds(edge: FloatArray, merged: FloatArray, cases: Cases) -> dict[str, float]:
    """The four thresholds, on calibrated scores.

    ``dismiss`` keeps every nodule that was proposed, with a margin; ``alone`` and ``final`` leave
    so many false alarms a scan; from ``report`` on the edge speaks alone: it lies just above every
    false alarm of validation, or where no verdict of validation takes a place back any more.
    """
    nodules, alarms = edge[cases.nodule], edge[~cases.nodule]
    dismiss = MARGIN * float(nodules.min())
    alone = _leaving(alarms, ALONE_ALARMS * cases.scans)
    final = _leaving(merged[~cases.nodule], FINAL_ALARMS * cases.scans)
    report = min(float(alarms.max(initial=0.0)) + 1e-5, _settled(edge, merged >= final))
    values = {"dismiss": dismiss, "report": report, "alone": max(alone, dismiss), "final": final}
    return {name: round(value, 6) for name, value in values.items()}


def _settled(edge: FloatArray, kept: np.ndarray) -> float:
    """A score above that of everything that is not ``kept``, half-way to the next that is."""
    taken = float(edge[~kept].max(initial=0.0))
    return (taken + float(edge[edge > taken].min(initial=1.0))) / 2


def _leaving(alarms: FloatArray, allowed: float) -> float:
    """A threshold between the alarms that are let through and the next."""
    ranked = np.sort(alarms)[::-1]
    count = int(allowed)
    if count >= len(ranked):
        return float(ranked[-1]) / 2
    return float((ranked[count - 1] + ranked[count]) / 2)


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))
