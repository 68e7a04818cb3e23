import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from edge.merge import MergeWeights
from evaluation.accuracy.data import Cube
from evaluation.accuracy.scores import Fitted, joined, read_scores, score_cubes
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.plain_readings import plain

FITTED = Fitted((2.0, 1.0), (1.0, 0.0), MergeWeights(0.0, 0.5, 0.5))
CASES: dict[str, Any] = {
    "edge": [0.0, 1.0, -1.0],
    "cloud": [1.0, 1.0, 0.0],
    "nodule": [True, True, False],
    "missed": 1,
    "scans": 2.5,
    "patient": ["a", "b", "b"],
    "missed_patient": ["a"],
}


def write(folder: Path, cases: dict[str, Any], kind: str = "npz") -> Path:
    path = folder / f"cases.{kind}"
    if kind == "json":
        path.write_text(json.dumps(cases))
    else:
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in cases.items()}
        np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_file_of_cases_is_scored_as_the_product_scores(tmp_path: Path, kind: str) -> None:
    """Logits are calibrated and merged; a nodule never proposed has no score."""
    scores = read_scores(write(tmp_path, CASES, kind), FITTED)
    edge = 1 / (1 + np.exp(-np.array([1.0, 3.0])))
    np.testing.assert_allclose(scores.nodules.edge, [*edge, -np.inf])
    merged = 1 / (1 + np.exp(-np.array([0.5 * 1 + 0.5 * 1, 0.5 * 3 + 0.5 * 1])))
    np.testing.assert_allclose(scores.nodules.merged, [*merged, 0.0])
    assert scores.nodules.patient.tolist() == ["a", "b", "a"]
    np.testing.assert_allclose(scores.false_edge, [1 / (1 + np.e)])
    assert (scores.scans, scores.patients_known) == (2.5, True)


def test_nodules_without_patients_are_patients_of_their_own(tmp_path: Path) -> None:
    cases = {k: v for k, v in CASES.items() if "patient" not in k}
    scores = read_scores(write(tmp_path, cases), FITTED)
    assert len(set(scores.nodules.patient)) == 3
    assert not scores.patients_known


@pytest.mark.parametrize(
    "change", [{"edge": None}, {"cloud": [1.0]}, {"missed_patient": []}, {"edge": ["x", "y", "z"]}]
)
def test_what_is_no_file_of_cases_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    cases = {k: v for k, v in {**CASES, **change}.items() if v is not None}
    with pytest.raises(MissingData, match="cases"):
        read_scores(write(tmp_path, cases, "json"), FITTED)
    with pytest.raises(MissingData, match="nowhere"):
        read_scores(tmp_path / "nowhere.npz", FITTED)


def test_files_are_joined_by_patient(tmp_path: Path) -> None:
    one = read_scores(write(tmp_path, CASES), FITTED)
    both = joined([one, one])
    assert (len(both.nodules), both.scans, both.false_edge.size) == (6, 5.0, 2)
    assert len(set(both.nodules.patient)) == 2


class OnePlace:
    """A screening network that proposes a place, and a fainter one beside it."""

    name, version, engine = "one", "1", "none"
    settings: Mapping[str, object] = MappingProxyType({})

    def screen(self, box: Preprocessed) -> list[Candidate]:  # noqa: ARG002 - it never looks
        places = ((20.0, 20.0, 20.0), 0.4), ((20.0, 20.0, 21.0), 0.8)
        return [Candidate((0.0, 0.0, 0.0), at, 6.0, score) for at, score in places]


class Sure:
    """A second reader that says 0.9 of everything."""

    roi_shape = (8, 8, 8)

    def read(self, batch: UInt8Array) -> Readings:
        return plain(np.full(len(batch), 0.9), np.full(len(batch), 6.0))


def test_cubes_are_scored_by_their_strongest_hit() -> None:
    voxels = np.zeros((40, 40, 40), np.uint8)
    cubes = [
        Cube("a", "p", voxels, (20.0, 20.0, 20.0), 6.0),
        Cube("b", "q", voxels, (5.0, 5.0, 5.0), 6.0),
    ]
    scores = score_cubes(cubes, OnePlace(), Sure(), MergeWeights(0.0, 0.0, 1.0))
    np.testing.assert_allclose(scores.nodules.edge, [0.8, -np.inf])
    np.testing.assert_allclose(scores.nodules.merged, [0.9, 0.0])
    assert scores.nodules.patient.tolist() == ["p", "q"]
