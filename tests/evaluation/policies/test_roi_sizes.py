from collections.abc import Sequence

import numpy as np
import pytest

from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.accuracy.data import Cube
from evaluation.policies.roi_sizes import COLUMNS, Verdicts, as_dict, read_sizes
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.plain_readings import plain

THRESHOLDS = Thresholds(possible=0.5, finding=0.5, dismiss=0.1, report=0.9)
CLOUD_ALONE = MergeWeights(bias=0.0, edge=0.0, cloud=1.0)


class Brightest:
    """The brightest voxel of an ROI as a share of 250."""

    roi_shape = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        return plain(batch.max((1, 2, 3)) / 250, np.full(len(batch), 8.0))


def screens(_box: Preprocessed) -> Sequence[Candidate]:
    """The nodule in the middle, a small one beside it, one too large to shrink, one dismissed."""
    places = ((25.0, 6.0, 0.8), (20.0, 6.0, 0.4), (25.0, 25.0, 0.7), (10.0, 6.0, 0.05))
    return [Candidate((x, x, x), (x, x, x), mm, score) for x, mm, score in places]


NAN = float("nan")


@pytest.mark.parametrize(
    ("bright", "reduced", "slab"),
    [
        ((25, 25, 5), [0.2, 0.8, NAN], [0.2, 0.8, NAN]),
        ((13, 25, 25), [0.8, 0.8, NAN], [0.2, 0.8, NAN]),
    ],
    ids=["20 mm off in the slice", "12 mm off along the slices"],
)
def test_each_size_shows_what_the_cloud_would_see(
    bright: tuple[int, int, int], reduced: list[float], slab: list[float]
) -> None:
    """Off in the slice: in the full ROI alone; along the slices: in the cubes."""
    voxels = np.full((50, 50, 50), 50, np.uint8)
    voxels[bright] = 200
    cube = Cube("val/0", "p", voxels, (25.0, 25.0, 25.0), 6.0)
    verdicts = read_sizes([cube], screens, Brightest(), THRESHOLDS)
    assert verdicts.nodule.tolist() == [True, False, True]
    assert verdicts.score.tolist() == [0.8, 0.4, 0.7]
    np.testing.assert_allclose(verdicts.cloud[Size.FULL], [0.8, 0.8, 0.8])
    np.testing.assert_allclose(verdicts.cloud[Size.REDUCED], reduced)
    np.testing.assert_allclose(verdicts.cloud[Size.SLAB], slab)


def test_figures_of_a_size_by_hand() -> None:
    """Only candidates that fit count, for the full size too; the share is that of 2 AUC - 1."""
    verdicts = Verdicts(
        np.array([True, True, False, False, True]),
        np.full(5, 0.5),
        {
            Size.FULL: np.array([0.9, 0.8, 0.3, 0.2, 0.9]),
            Size.REDUCED: np.array([0.9, 0.25, 0.3, 0.2, NAN]),
            Size.SLAB: np.array([0.9, 0.8, 0.6, 0.2, NAN]),
        },
    )
    said = as_dict(verdicts, THRESHOLDS, CLOUD_ALONE)
    full, reduced, slab = said["sizes"]
    assert (full["candidates"], full["share"], full["agreement"]) == (5, 1.0, 1.0)
    assert (reduced["candidates"], reduced["nodules"]) == (4, 2)
    assert (reduced["sensitivity"], reduced["sensitivity_full"]) == (0.5, 1.0)
    assert (reduced["agreement"], reduced["auc"]) == (0.75, 0.75)
    assert reduced["share"] == pytest.approx(0.5)
    assert (slab["false_share"], slab["share"]) == (0.5, 1.0)
    assert set(COLUMNS) == set(full)
