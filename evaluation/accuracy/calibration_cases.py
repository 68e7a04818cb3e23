"""The candidates on which calibration is evaluated: logits of both readers, and the truth.

They are chosen as the fit chooses them. Of a cube: the best candidate on its nodule and the six
strongest beside it, away from the faces, where there are mirror images. Of a scan: the best
candidate on each known lesion and every other one. A candidate at another annotation is ignored.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.calibration import BoolArray
from evaluation.accuracy.data import Annotation, Cube
from evaluation.accuracy.scores import Fitted
from evaluation.accuracy.truth import Truth, scan_name
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry, UInt8Array
from models.calibration.fit import CUBE_FALSE_POSITIVES, FACE
from models.runtime.detection import Candidate
from models.runtime.screener import Screener
from models.runtime.second_reader import SecondReader

_BATCH = 8
_EPSILON = 1e-12


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates ``(n,)``: logits as the networks gave them, and the truth.

    ``group`` names a cube's patient or a scan: the bootstrap draws whole groups.
    """

    edge: FloatArray
    cloud: FloatArray
    nodule: BoolArray
    group: npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Readers:
    """Both readers, opened."""

    screener: Screener
    second: SecondReader

    @property
    def fitted(self) -> Fitted:
        """Return the settings of the manifest that were fitted with them."""
        return Fitted.of(self.screener.settings, self.second.session.artifact.settings)


Row = tuple[float, float, bool, str]


def cube_rows(readers: Readers, cube: Cube, annotations: Sequence[Annotation]) -> list[Row]:
    """Return the candidates of one cube; ``annotations`` are other known locations in it."""
    found = readers.screener.screen(Preprocessed(cube.voxels, Geometry()))
    hits = [c for c in found if cube.hit_by(c.index_zyx)][:1]
    known = (Annotation(cube.centre_zyx, cube.diameter_mm), *annotations)
    size = np.array(cube.voxels.shape)
    beside = [
        c for c in found
        if min(c.index_zyx) >= FACE and (np.array(c.index_zyx) < size - FACE).all()
        # within 5 mm of an annotation's sphere it is neither hit nor false positive
        and not any(one.covers(c.index_zyx, 5.0) for one in known)
    ][:CUBE_FALSE_POSITIVES]  # fmt: skip
    return _rows(readers, cube.voxels, hits, beside, cube.patient)


def scan_rows(readers: Readers, folder: Path, truth: Truth) -> list[Row]:
    """Return the candidates of one whole scan."""
    box = preprocess(read_study(folder).volume, folder)
    found = readers.screener.screen(box)
    firsts = [[c for c in found if lesion.hit_by(c.centre_mm)][:1] for lesion in truth.lesions]
    hits = [c for first in firsts for c in first]
    beside = [c for c in found if truth.is_false(c.centre_mm)]
    return _rows(readers, box.voxels, hits, beside, scan_name(folder))


def gathered(rows: Iterable[Row]) -> Candidates:
    """Return the rows as columns."""
    edge, cloud, nodule, group = zip(*rows, strict=True)
    return Candidates(
        np.array(edge, float), np.array(cloud, float), np.array(nodule, bool), np.array(group)
    )


def _rows(
    readers: Readers,
    voxels: UInt8Array,
    hits: Sequence[Candidate],
    beside: Sequence[Candidate],
    group: str,
) -> list[Row]:
    """Return the candidates as both networks score them."""
    rows, second, fitted = list[Row](), readers.second, readers.fitted
    for found, nodule in ((hits, True), (beside, False)):
        for start in range(0, len(found), _BATCH):
            batch = found[start : start + _BATCH]
            rois = np.stack([cut_roi(voxels, c.index_zyx, second.roi_shape) for c in batch])
            edge = _raw(np.array([c.score for c in batch]), fitted.edge)
            cloud = _raw(second.read(rois).probability, fitted.cloud)
            pairs = zip(edge.tolist(), cloud.tolist(), strict=True)
            rows += [(e, c, nodule, group) for e, c in pairs]
    return rows


def _raw(score: FloatArray, calibration: tuple[float, float]) -> FloatArray:
    """Return the network's own logit, before slope and intercept."""
    slope, intercept = calibration
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray((np.log(clipped / (1 - clipped)) - intercept) / slope)
