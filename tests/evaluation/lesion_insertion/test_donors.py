from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.truth import Lesion, Truth
from evaluation.lesion_insertion.donors import cut_lesions, donor_of, read_donors
from imaging.preprocess import preprocess
from tests.evaluation.plain_chest import chest, donor, host, in_lung, nodule


def test_the_wall_stays_behind() -> None:
    found = donor()
    assert found.cover[25, 24, 25] == pytest.approx(1.0)
    assert found.cover[25, 24, 8] == 0
    assert found.lung_hu == pytest.approx(-900, abs=6)
    assert found.reach_mm == pytest.approx(5.0, abs=0.3)
    assert found.attached == 0


def test_a_nodule_at_the_wall_says_so() -> None:
    cube, votes = nodule(10.0)
    voxels = cube.voxels.copy()
    voxels[:, :, :19] = 189
    found = donor_of(replace(cube, voxels=voxels), votes)
    assert found is not None
    assert 0.1 < found.attached < 0.5
    assert found.cover[25, 24, 17] < 0.02


def test_an_outline_elsewhere_is_no_donor() -> None:
    cube, votes = nodule(6.0)
    assert donor_of(cube, np.roll(votes, 12, axis=0)) is None
    assert donor_of(cube, votes * 0) is None


def test_a_lesion_of_a_scan_is_cut_at_its_size() -> None:
    """A ball of 20 mm in the lung gives a donor of 20 mm, whatever the marked diameter."""
    volume = chest((1.0, 1.0, 1.0))
    point = in_lung(0)
    z, y, x = (round(float(v)) for v in volume.geometry.to_index(point))
    grid = np.ogrid[tuple(slice(n) for n in volume.shape)]
    ball = sum((g - c) ** 2 for g, c in zip(grid, (z, y, x), strict=True)) <= 100
    volume.hu[np.asarray(ball)] = 30
    marked = replace(host(Truth((Lesion(point, 22.0),))), volume=volume)
    (found,) = cut_lesions(marked, preprocess(volume))
    assert found.diameter_mm == pytest.approx(20.0, abs=1.0)
    assert found.patient == "chest"


def test_real_nodules_are_cut(shared_data: Path) -> None:
    """Almost every nodule of test has an outline at its centre; traits stay beside donors."""
    donors, traits = read_donors(shared_data / "nodules", ("test",), most=6)
    assert len(donors) == len(traits["diameter"]) == 6
    assert traits["diameter"].tolist() == [donor.diameter_mm for donor in donors]
    assert all(-970 < donor.lung_hu < -600 for donor in donors)
