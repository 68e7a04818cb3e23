from pathlib import Path

import cv2
import numpy as np
import pytest

from models.training.compose import NODULE, Composer, draw_samples, implanted, save_samples
from tests.models.training.test_data import ball, even

SIDES = (64, 64, 64)


def composer() -> Composer:
    """Cubes with a bright ball in the middle and a scan of plain lung."""
    cubes = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0, 16.0)]
    return Composer(cubes, [even((120, 130, 140))], side=96)


@pytest.mark.parametrize("kind", ["mosaic", "mirror", "scan"])
def test_every_mark_lies_on_something_bright(kind: str) -> None:
    rng = np.random.default_rng(3)
    seen = 0
    for _ in range(6):
        sample = getattr(composer(), kind)(rng)
        assert sample.voxels.shape == sample.mask.shape == (96, 96, 96)
        for z, y, x, _ in sample.nodules:
            at = tuple(int(np.clip(round(v), 0, 95)) for v in (z, y, x))
            assert sample.voxels[at] > 110
            assert sample.mask[at] > 127
            seen += 1
    assert seen > 3


def test_nodules_of_mosaics_lie_everywhere() -> None:
    rng = np.random.default_rng(1)
    places = np.concatenate([composer().mosaic(rng).nodules[:, :3] for _ in range(40)])
    assert len(places) > 200
    octant = ((places > 48) @ [4, 2, 1]).astype(int)
    assert np.bincount(octant, minlength=8).max() < 0.25 * len(places)


def test_an_implant_goes_into_lung_only() -> None:
    """Air with sheets of tissue, as where skin meets air, is as dark on the whole, and is none."""
    rng = np.random.default_rng(0)
    donor = ball((50, 50, 50), (25, 25, 25), 8.0)
    sheets = even(SIDES, 0)
    sheets.voxels[:, ::4] = 150
    assert 15 < sheets.voxels.mean() < 75
    for no_lung in (even(SIDES, 190), sheets):
        assert len(implanted(no_lung, donor, rng, real=True).nodules) == 0
    part = implanted(even(SIDES), donor, rng, real=True)
    assert len(part.nodules) == 1
    assert part.voxels[tuple(np.rint(part.nodules[0, :3]).astype(int))] > 150


def test_a_piece_of_vessel_is_implanted_without_a_mark() -> None:
    rng = np.random.default_rng(0)
    donor = ball((50, 50, 50), (25, 25, 25), 8.0)
    donor.voxels[30:, 30:, 30:] = 150
    lung = even(SIDES)
    parts = [implanted(lung, donor, rng, real=False) for _ in range(10)]
    assert all(len(part.nodules) == 0 and not part.mask.any() for part in parts)
    assert any((part.voxels != lung.voxels).any() for part in parts)


def test_the_same_seed_draws_the_same_samples() -> None:
    one, other = (composer().draw(np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(one.nodules, other.nodules)


def test_the_sheet_shows_every_composition_with_its_nodules(tmp_path: Path) -> None:
    sheet = draw_samples(composer(), columns=2, seed=1)
    assert sheet.shape == (3 * 194, 2 * 194, 3)
    for row in np.split(sheet, 3):
        assert (row == NODULE).all(-1).any()
    np.testing.assert_array_equal(sheet, draw_samples(composer(), columns=2, seed=1))
    save_samples(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sheet.png")), sheet)
