"""The scores of known nodules from edge and cloud: of a file of cases, or read with the models.

A file has the cases of `models.calibration.fit.Cases`: ``edge`` and ``cloud`` (logits of the
candidates), ``nodule`` (which of them are nodules), ``missed`` (nodules never proposed) and
``scans`` (how much lung the others come from). It may name the patients: ``patient`` (one label a
candidate) and ``missed_patient`` (one a missed nodule).
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from edge.merge import MergeWeights
from edge.reader import Screening
from evaluation.accuracy.data import Cube
from evaluation.common.readers import RoiReader
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.calibration.risk_control import ScoredNodules
from models.runtime.sigmoid import sigmoid


def calibrated(logit: FloatArray, by: tuple[float, float] = (1.0, 0.0)) -> FloatArray:
    """Return the probabilities of logits of any shape, after slope and intercept."""
    slope, intercept = by
    return sigmoid(slope * logit + intercept)


@dataclass(frozen=True)
class Fitted:
    """The fit that turns logits into scores: ``(slope, intercept)`` of both, and the merger."""

    edge: tuple[float, float]
    cloud: tuple[float, float]
    weights: MergeWeights

    @classmethod
    def of(cls, screening: Mapping[str, Any], hybrid: Mapping[str, Any]) -> Self:
        """Return the fit in the manifest's settings of both artifacts."""
        edge, cloud = tuple(screening["calibration"]), tuple(hybrid["calibration"])
        return cls(edge, cloud, MergeWeights.from_manifest(screening))

    def scores(self, edge: FloatArray, cloud: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the edge's scores and the merged probabilities of logits ``(n,)``."""
        score, chance = calibrated(edge, self.edge), calibrated(cloud, self.cloud)
        pairs = zip(score.tolist(), chance.tolist(), strict=True)
        return score, np.array([self.weights.merged(e, c) for e, c in pairs], np.float64)


@dataclass(frozen=True, eq=False)
class Scores:
    """Nodules, and the false candidates ``(m,)`` of ``scans`` scans; 0 without scans.

    ``patients_known`` is False if the patients are not named: each nodule counts as a patient.
    """

    nodules: ScoredNodules
    false_edge: FloatArray
    false_merged: FloatArray
    scans: float
    patients_known: bool


def read_scores(path: Path, fitted: Fitted) -> Scores:
    """Read the cases of an NPZ or JSON file, as ``fitted`` scores them.

    Raises:
        MissingData: the file cannot be read, or lacks a part of the cases.
    """
    arrays = _arrays(path)
    try:
        edge, cloud = (np.asarray(arrays[key], np.float64) for key in ("edge", "cloud"))
        nodule = np.asarray(arrays["nodule"], bool)
        missed, scans = int(arrays["missed"]), float(arrays["scans"])
        patient = np.array([f"nodule {number}" for number in range(int(nodule.sum()) + missed)])
        if "patient" in arrays:  # proposed nodules come first
            proposed = np.asarray(arrays["patient"]).astype(str)[nodule]
            unseen = np.asarray(arrays.get("missed_patient", [])).astype(str)
            if len(unseen) != missed:
                raise ValueError(f"{len(unseen)} of missed_patient for {missed} missed nodules")
            patient = np.concatenate([proposed, unseen])
        score, merged = fitted.scores(edge, cloud)
        nodules = ScoredNodules(
            np.concatenate([score[nodule], np.full(missed, -np.inf)]),
            np.concatenate([merged[nodule], np.zeros(missed)]),
            patient,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise MissingData(path, f"has no cases ({type(error).__name__}: {error})") from error
    return Scores(nodules, score[~nodule], merged[~nodule], scans, "patient" in arrays)


def score_cubes(
    cubes: Iterable[Cube], screener: Screening, second: RoiReader, weights: MergeWeights
) -> Scores:
    """Score every cube's nodule with both models, by its strongest candidate if it has one."""
    rows: list[tuple[float, float, str]] = []
    for cube in cubes:
        found = screener.screen(Preprocessed(cube.voxels, Geometry()))
        hits = [c for c in found if cube.hit_by(c.index_zyx)]
        score, merged_score = -np.inf, 0.0
        if hits:
            best = max(hits, key=lambda c: c.score)
            roi = cut_roi(cube.voxels, best.index_zyx, second.roi_shape)
            score, chance = best.score, float(second.read(roi[None]).probability[0])
            merged_score = weights.merged(score, chance)
        rows.append((score, merged_score, cube.patient))
    edge, merged, patient = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(0)
    return Scores(ScoredNodules(edge, merged, patient), none, none, 0.0, patients_known=True)


def joined(parts: Iterable[Scores]) -> Scores:
    """Join several scores; the same label in two of them is the same patient."""
    every = list(parts)
    nodules = ScoredNodules(
        np.concatenate([part.nodules.edge for part in every]),
        np.concatenate([part.nodules.merged for part in every]),
        np.concatenate([part.nodules.patient.astype(str) for part in every]),
    )
    return Scores(
        nodules,
        np.concatenate([part.false_edge for part in every]),
        np.concatenate([part.false_merged for part in every]),
        sum(part.scans for part in every),
        all(part.patients_known for part in every),
    )


def _arrays(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_text()))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise MissingData(path, f"cannot be read as cases ({error})") from error
