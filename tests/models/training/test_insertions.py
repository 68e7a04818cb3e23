from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.volume import Study
from models.runtime.errors import MissingData
from models.training import insertions
from models.training.data import Cubes, Piece
from models.training.insertions import copies_of_scans, donors_of, tissue_of
from models.training.runs import Material
from models.training.screening import ScreeningTask
from tests.evaluation.plain_chest import chest, in_lung
from tests.models.training.test_data import ball, even
from tests.models.training.test_hybrid import BrightHeat

MIDDLE = (24.5, 24.5, 24.5)


@pytest.fixture
def cubes() -> Cubes:
    """A ball of 8 mm; one of 10 mm with a block of tissue at each of its corners; one unrated."""
    walled = ball((50, 50, 50), MIDDLE, 10.0)
    sides = np.abs(np.arange(50) - 24.5) > 6
    walled.voxels[np.ix_(sides, sides, sides)] = 180
    other = ball((50, 50, 50), MIDDLE, 12.0)
    rated = np.array([3.0, 2.0, np.nan])
    return Cubes((ball((50, 50, 50), MIDDLE, 8.0), walled, other), ("a", "b", "c"), rated, rated)


@pytest.fixture
def copies(cubes: Cubes, monkeypatch: pytest.MonkeyPatch) -> tuple[Piece, ...]:
    marks = np.array([[*in_lung(0), 10.0]]), np.array([[*in_lung(1), 6.0]])
    monkeypatch.setattr(insertions, "marked_scans", lambda *_, **__: [(Path("ct/lidc_7"), [])])
    monkeypatch.setattr(insertions, "read_marked", lambda path, _: (Study(chest(), path), *marks))
    monkeypatch.setattr(insertions, "TOGETHER", 3)
    return copies_of_scans(Path(), cubes, 2, 0)


def test_without_a_donor_there_is_no_copy(cubes: Cubes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insertions, "marked_scans", lambda *_, **__: [])
    unrated = replace(cubes, malignancy=np.full(3, np.nan))
    with pytest.raises(MissingData, match="no training nodule has a rating and an outline"):
        copies_of_scans(Path(), unrated, 2, 0)


def test_rated_nodules_are_donors(cubes: Cubes) -> None:
    assert [(one.patient, one.diameter_mm) for one in donors_of(cubes)] == [("a", 8.0), ("b", 10.0)]


def test_tissue_lies_beside_the_nodule_and_has_its_shape(cubes: Cubes) -> None:
    found = {one.patient: one for one in tissue_of(cubes, np.random.default_rng(0))}
    assert set(found) == {"a", "b", "c"}
    inside = cubes.pieces[1].mask > 0
    assert found["b"].cover[inside].max() < 0.1
    assert found["b"].cover.max() > 0.9
    assert found["b"].cover.sum() > 0.5 * inside.sum()


def test_nodules_are_inserted_where_the_marks_say_and_tissue_has_no_mark(
    copies: tuple[Piece, ...],
) -> None:
    """Two copies of the one scan, each with its own nodule; marks of before stay."""
    assert [one.name for one in copies] == ["lidc_7", "lidc_7"]
    assert sum(len(one.nodules) - 1 for one in copies) == 4
    for copied in copies:
        assert len(copied.ignored) == 1
        for z, y, x, mm in copied.nodules[1:]:
            at = tuple(np.rint([z, y, x]).astype(int))
            assert copied.voxels[at] > 150
            assert copied.mask[at] == 255
            assert mm in (8.0, 10.0)
            away = np.linalg.norm(
                np.concatenate([copied.nodules[:1], copied.ignored])[:, :3] - at, axis=1
            )
            assert (away > 12).all()
    first, second = (one.nodules[1:].tolist() for one in copies)
    assert first != second


def test_copies_are_half_of_the_whole_lungs(cubes: Cubes, copies: tuple[Piece, ...]) -> None:
    """A copy has no name there: where the network errs is mined in the scan itself."""
    scans = tuple(replace(even((60, 60, 60)), name=name) for name in ("lidc_6", "lidc_7"))
    for some, share in ((copies, 0.5), ((), 0.0)):
        composer = Material(cubes, scans, (), (), some).composer
        assert [one.name for one in composer.scans] == ["lidc_6", "lidc_7", *("" for _ in some)]
        weights = composer.scan_weights
        assert sum(weights[2:]) == pytest.approx(share * sum(weights))
    task = ScreeningTask(Material(cubes, scans, (), (), copies).composer, (), (), BrightHeat())
    task.refresh(task.network)
    assert all(len(places) == 0 for places in task.composer.hard[2:])
