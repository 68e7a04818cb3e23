"""The candidates that calibration is judged by: logits of both readers, and what is true of them.

They are taken as the fit takes them: of a cube the best candidate on its nodule and the six
strongest beside it, away from the faces, where there is mirror image; of a scan the best
candidate on each known lesion and every other one. What is marked as neither counts neither way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.merge import MergeWeights
from evaluation.accuracy.calibration import BoolArray
from evaluation.accuracy.data import Cube, Lesion, Mark, scan_name
from evaluation.accuracy.scores import Fitted
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry
from models.calibration.fit import CUBE_ALARMS, FACE
from models.runtime.detection import Candidate
from models.runtime.screener import Screener
from models.runtime.second_reader import SecondReader

NEAR_MM = 5.0
"""A candidate within this of a mark's sphere is neither hit nor alarm."""

_BATCH = 8
_EPSILON = 1e-12


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates ``(n,)``: logits as the networks gave them, truth, and whose they are.

    ``group`` names a cube's patient or a scan: what belongs together is drawn together.
    """

    edge: FloatArray
    cloud: FloatArray
    nodule: BoolArray
    group: npt.NDArray[np.str_]

    def of(self, chosen: npt.NDArray[np.generic]) -> Candidates:
        """Those ``chosen`` by mask or by number."""
        return Candidates(
            self.edge[chosen], self.cloud[chosen], self.nodule[chosen], self.group[chosen]
        )


@dataclass(frozen=True, eq=False)
class Pair:
    """Both readers, opened, with the settings that were fitted with them."""

    screener: Screener
    second: SecondReader

    @property
    def fitted(self) -> Fitted:
        """What the manifest says of both."""
        return Fitted.of(self.screener.settings, self.second.session.artifact.settings)

    @property
    def weights(self) -> MergeWeights:
        """The merger."""
        return self.fitted.weights


Row = tuple[float, float, bool, str]


def cube_rows(pair: Pair, cube: Cube, marks: Sequence[Mark]) -> list[Row]:
    """What counts of one cube; ``marks`` is what else is known to be there."""
    found = pair.screener.screen(Preprocessed(cube.voxels, Geometry()))
    hits = [c for c in found if cube.hit_by(c.index_zyx)][:1]
    known = (Mark(cube.centre_zyx, cube.diameter_mm), *marks)
    size = np.array(cube.voxels.shape)
    beside = [
        c for c in found
        if min(c.index_zyx) >= FACE and (np.array(c.index_zyx) < size - FACE).all()
        and not any(mark.covers(c.index_zyx, NEAR_MM) for mark in known)
    ][:CUBE_ALARMS]  # fmt: skip
    return _rows(pair, cube.voxels, hits, True, cube.patient) + _rows(
        pair, cube.voxels, beside, False, cube.patient
    )


def scan_rows(pair: Pair, folder: Path, lesions: Sequence[Lesion]) -> list[Row]:
    """What counts of one whole scan.

    Raises:
        StudyError: it cannot be read.
    """
    box, name = preprocess(read_study(folder).volume, folder), scan_name(folder)
    found = pair.screener.screen(box)
    hits = [c for lesion in lesions for c in _first(found, lesion)]
    beside = [c for c in found if not any(lesion.covers(c.centre_mm) for lesion in lesions)]
    return _rows(pair, box.voxels, hits, True, name) + _rows(pair, box.voxels, beside, False, name)


def gathered(rows: Iterable[Row]) -> Candidates:
    """The rows as columns."""
    edge, cloud, nodule, group = zip(*rows, strict=True)
    return Candidates(
        np.array(edge, float), np.array(cloud, float), np.array(nodule, bool), np.array(group)
    )


def _first(found: Sequence[Candidate], lesion: Lesion) -> list[Candidate]:
    return [c for c in found if lesion.hit_by(c.centre_mm)][:1]


def _rows(
    pair: Pair, voxels: npt.NDArray[np.uint8], found: Sequence[Candidate], nodule: bool, group: str
) -> list[Row]:
    if not found:
        return []
    shape = pair.second.roi_shape
    regions = np.stack([cut_roi(voxels, c.index_zyx, shape) for c in found])
    parts = [pair.second.read(regions[i : i + _BATCH]) for i in range(0, len(found), _BATCH)]
    chance = np.concatenate([part.probability for part in parts])
    fitted = pair.fitted
    edge = _raw(np.array([c.score for c in found]), fitted.edge)
    cloud = _raw(chance, fitted.cloud)
    return [(e, c, nodule, group) for e, c in zip(edge.tolist(), cloud.tolist(), strict=True)]


def _raw(score: FloatArray, calibration: tuple[float, float]) -> FloatArray:
    """The network's own logit, before slope and intercept."""
    slope, intercept = calibration
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray((np.log(clipped / (1 - clipped)) - intercept) / slope)
