from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from evaluation.accuracy.calibration_cases import Readers, cube_rows, gathered
from evaluation.accuracy.data import Annotation, Cube
from imaging.preprocess import Preprocessed
from imaging.volume import Triple, UInt8Array
from models.runtime.detection import Candidate
from models.runtime.screener import Screener
from models.runtime.second_reader import Readings, SecondReader
from tests.plain_readings import plain

MERGE = [0.0, 0.5, 0.5]


class Says:
    """A screening network that proposes these places of a cube, scores as given."""

    settings = {"calibration": [2.0, 1.0], "merge": MERGE}  # noqa: RUF012  # a test's constant

    def __init__(self, candidates: list[tuple[Triple, float]]) -> None:
        self.candidates = candidates

    def screen(self, box: Preprocessed) -> list[Candidate]:
        del box
        return [Candidate((at[2], at[1], at[0]), at, 5.0, score) for at, score in self.candidates]


class Doubts:
    """A second reader that gives every region 0.5."""

    roi_shape = (8, 8, 8)
    session = SimpleNamespace(artifact=SimpleNamespace(settings={"calibration": [1.0, 0.25]}))

    def read(self, batch: UInt8Array) -> Readings:
        return plain([0.5] * len(batch), [4.0] * len(batch), side=8)


def readers(candidates: list[tuple[Triple, float]]) -> Readers:
    return Readers(cast(Screener, Says(candidates)), cast(SecondReader, Doubts()))


CUBE = Cube("val/0", "p", np.zeros((50, 50, 50), np.uint8), (25.0, 25.0, 25.0), 8.0)


def test_best_hit_and_false_candidates_away_from_annotations_and_faces() -> None:
    """One row for the nodule; none for a second hit, the rim, a face, or an annotation."""
    candidates = [
        ((25.0, 25.0, 26.0), 0.9), ((25.0, 26.0, 25.0), 0.8), ((25.0, 25.0, 33.0), 0.7),
        ((5.0, 25.0, 25.0), 0.6), ((40.0, 40.0, 40.0), 0.5), ((10.0, 10.0, 10.0), 0.4),
    ]  # fmt: skip
    beside = [Annotation((40.0, 40.0, 41.0), 6.0)]
    found = gathered(cube_rows(readers(candidates), CUBE, beside))
    assert found.nodule.tolist() == [True, False]
    assert found.group.tolist() == ["p", "p"]
    assert found.edge[0] == pytest.approx((np.log(9.0) - 1.0) / 2.0)
    assert found.edge[1] == pytest.approx((np.log(0.4 / 0.6) - 1.0) / 2.0)
    assert found.cloud.tolist() == pytest.approx([-0.25, -0.25])


def test_a_cube_gives_its_six_strongest_false_candidates_at_most() -> None:
    candidates = [((10.0, 10.0, 8.0 + i), 0.5 - 0.01 * i) for i in range(9)]
    found = gathered(cube_rows(readers(candidates), CUBE, ()))
    assert found.nodule.tolist() == [False] * 6
    assert found.edge[found.nodule].size == 0
