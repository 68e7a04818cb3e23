"""Which candidates lie at lung tissue, and which in bowel gas or in the heart."""

import csv
from pathlib import Path

import numpy as np
import pytest

from imaging.lungs import at_lung, find_lungs
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import HuArray, Volume
from tests.imaging.test_lungs import SPACING_MM, chest, ellipsoid, fresh_chest

__all__ = ["chest", "fresh_chest"]

MIDDLE = np.array([47.5, 74.5, 95.5])


def accepted(hu: HuArray, centre_mm: tuple[float, float, float], diameter_mm: float) -> bool:
    """Whether a candidate counts; ``centre_mm`` ``(z, y, x)`` is from the middle of the chest."""
    lungs = find_lungs(hu, SPACING_MM, "chest")
    index = MIDDLE + np.asarray(centre_mm) / SPACING_MM
    return bool(at_lung(lungs, SPACING_MM, index[None], np.array([diameter_mm]))[0])


def test_a_candidate_in_the_heart_does_not_count(chest: HuArray) -> None:
    chest[ellipsoid((0, -20, 0), (70, 60, 60))] = 40
    assert not accepted(chest, (0, -20, 0), 8.0)
    assert not accepted(chest, (0, -20, 0), 40.0)
    assert accepted(chest, (0, -20, 72), 8.0)


def test_a_polyp_in_a_bowel_under_the_lung_does_not_count(chest: HuArray) -> None:
    """Also where the gas and the lung are one region: no wall is seen between them."""
    chest[ellipsoid((-130, 0, 75), (36, 40, 40))] = -990
    chest[ellipsoid((-128, 0, 75), (6, 6, 6))] = 30
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert lungs.contains([MIDDLE + np.array([-120, 10, 75]) / SPACING_MM])[0]
    assert not accepted(chest, (-128, 0, 75), 12.0)


@pytest.mark.parametrize("diameter_mm", [4.0, 10.0, 30.0, 60.0])
def test_a_mass_of_any_size_at_the_pleura_counts(chest: HuArray, diameter_mm: float) -> None:
    radius = diameter_mm / 2
    chest[ellipsoid((0, 0, 120), (radius, radius, radius))] = 30
    assert accepted(chest, (0, 0, 120), diameter_mm)


def test_a_nodule_in_the_wall_of_a_bulla_counts(chest: HuArray) -> None:
    chest[ellipsoid((40, 0, -75), (30, 30, 30))] = -995
    chest[ellipsoid((5, 0, -75), (5, 5, 5))] = 30
    assert accepted(chest, (5, 0, -75), 10.0)


def test_bowel_with_stool_is_no_second_lung(chest: HuArray) -> None:
    rng = np.random.default_rng(1)
    colon = ellipsoid((-128, 20, 0), (14, 35, 150)) & ~ellipsoid((0, 0, 75), (115, 80, 60))
    colon &= ~ellipsoid((0, 0, -75), (115, 80, 60))
    grains = rng.random((96, 50, 64)).repeat(3, axis=1).repeat(3, axis=2)
    chest[colon] = np.where(grains < 0.7, -950, 0)[colon]
    lungs = find_lungs(chest, SPACING_MM, "chest")
    cells = np.floor((np.argwhere(colon) + 0.5) * lungs.air.shape / lungs.shape).astype(int)
    assert lungs.air[tuple(cells.T)].mean() < 0.05


@pytest.mark.long
def test_every_marked_nodule_of_the_whole_scans_counts(shared_data: Path) -> None:
    """Marked by readers, by a collection or by eye: from 4.6 to 36.5 mm."""
    marks = [
        (folder, row)
        for folder in ("lidc", "ct")
        for row in csv.DictReader((shared_data / folder / "marks.csv").read_text().splitlines())
        if row["kind"] in ("nodule", "lesion")
    ]
    lost, boxes = [], {}
    for folder, row in marks:
        if row["scan"] not in boxes:
            volume: Volume = read_study(shared_data / folder / row["scan"]).volume
            boxes = {row["scan"]: preprocess(volume)}
        box = boxes[row["scan"]]
        index = box.geometry.to_index([float(row[axis]) for axis in "xyz"])[None]
        if not box.inside(index, np.array([float(row["diameter_mm"])]))[0]:
            lost.append(row)
    assert len(marks) == 26
    assert lost == []
