"""What edge and cloud make of known nodules: from a file of cases, or read with the models.

A file holds the cases as `models.calibration.fit.Cases` has them: ``edge`` and ``cloud`` (logits
of the candidates), ``nodule`` (which of them are nodules), ``missed`` (nodules never proposed) and
``scans`` (how much lung the others come from). With ``patient`` (one label a candidate) and
``missed_patient`` (one a missed nodule) it says whose they are.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edge.merge import MergeWeights
from edge.screen import Screening
from evaluation.accuracy.data import Cube
from evaluation.common.readers import ReadsRegions
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.calibration.risk_control import ScoredNodules
from models.runtime.sigmoid import sigmoid


def calibrated(logit: FloatArray, by: tuple[float, float] = (1.0, 0.0)) -> FloatArray:
    """The probability of logits, of any shape, after slope and intercept."""
    slope, intercept = by
    return sigmoid(slope * logit + intercept)


@dataclass(frozen=True)
class Fitted:
    """What turns logits into scores: calibration ``(slope, intercept)`` of both, and merger."""

    edge: tuple[float, float]
    cloud: tuple[float, float]
    weights: MergeWeights

    @classmethod
    def of(cls, screening: Mapping[str, Any], hybrid: Mapping[str, Any]) -> Self:
        """From the manifest's settings of both artifacts."""
        edge, cloud = tuple(screening["calibration"]), tuple(hybrid["calibration"])
        return cls(edge, cloud, MergeWeights.from_manifest(screening))

    def scores(self, edge: FloatArray, cloud: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The edge's scores and the merged probabilities of logits ``(n,)``."""
        score, chance = calibrated(edge, self.edge), calibrated(cloud, self.cloud)
        pairs = zip(score.tolist(), chance.tolist(), strict=True)
        return score, np.array([self.weights.merged(e, c) for e, c in pairs], np.float64)


@dataclass(frozen=True, eq=False)
class Scores:
    """Nodules, and the false alarms ``(m,)`` of ``scans`` scans; 0 where none were read.

    ``owned`` is False where nobody knows whose the nodules are: each counts as a patient then.
    """

    nodules: ScoredNodules
    alarms_edge: FloatArray
    alarms_merged: FloatArray
    scans: float
    owned: bool


def read_scores(path: Path, fitted: Fitted) -> Scores:
    """The cases of an NPZ or JSON file as `Fitted` scores them.

    Raises:
        MissingData: it cannot be read, or lacks what makes a case.
    """
    arrays = _arrays(path)
    try:
        edge, cloud = (np.asarray(arrays[key], np.float64) for key in ("edge", "cloud"))
        nodule = np.asarray(arrays["nodule"], bool)
        missed, scans = int(arrays["missed"]), float(arrays["scans"])
        owner, owned = _owners(arrays, nodule, missed)
        score, merged = fitted.scores(edge, cloud)
        nodules = ScoredNodules(
            np.concatenate([score[nodule], np.full(missed, -np.inf)]),
            np.concatenate([merged[nodule], np.zeros(missed)]),
            owner,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise MissingData(path, f"holds no cases ({type(error).__name__}: {error})") from error
    return Scores(nodules, score[~nodule], merged[~nodule], scans, owned)


def score_cubes(
    cubes: Iterable[Cube], screener: Screening, second: ReadsRegions, weights: MergeWeights
) -> Scores:
    """Every cube's nodule as both models read it: by its strongest candidate, if it has one."""
    rows = [(*_score_cube(cube, screener, second, weights), cube.patient) for cube in cubes]
    edge, merged, patient = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(0)
    return Scores(ScoredNodules(edge, merged, patient), none, none, 0.0, owned=True)


def joined(parts: Iterable[Scores]) -> Scores:
    """All of them as one; the same label in two of them is the same patient."""
    every = list(parts)
    nodules = ScoredNodules(
        np.concatenate([part.nodules.edge for part in every]),
        np.concatenate([part.nodules.merged for part in every]),
        np.concatenate([part.nodules.patient.astype(str) for part in every]),
    )
    alarms = [np.concatenate([p.alarms_edge for p in every]),
              np.concatenate([p.alarms_merged for p in every])]  # fmt: skip
    owned = all(part.owned for part in every)
    return Scores(nodules, alarms[0], alarms[1], sum(part.scans for part in every), owned)


def _score_cube(
    cube: Cube, screener: Screening, second: ReadsRegions, weights: MergeWeights
) -> tuple[float, float]:
    found = screener.screen(Preprocessed(cube.voxels, Geometry()))
    hits = [c for c in found if cube.hit_by(c.index_zyx)]
    if not hits:
        return -np.inf, 0.0
    best = max(hits, key=lambda c: c.score)
    region = cut_roi(cube.voxels, best.index_zyx, second.roi_shape)
    chance = float(second.read(region[None]).probability[0])
    return best.score, weights.merged(best.score, chance)


def _arrays(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text())
            return dict(found)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise MissingData(path, f"cannot be read as cases ({error})") from error


def _owners(
    arrays: Mapping[str, Any], nodule: npt.NDArray[np.bool_], missed: int
) -> tuple[npt.NDArray[Any], bool]:
    """Whose the nodules are, proposed ones first, and whether the file says so."""
    if "patient" not in arrays:
        labels = [f"nodule {number}" for number in range(int(nodule.sum()) + missed)]
        return np.array(labels), False
    proposed = np.asarray(arrays["patient"]).astype(str)[nodule]
    unseen = np.asarray(arrays.get("missed_patient", [])).astype(str)
    if len(unseen) != missed:
        raise ValueError(f"{len(unseen)} of missed_patient for {missed} missed nodules")
    return np.concatenate([proposed, unseen]), True
