import numpy as np
import pytest

from models.training.augment import Noise
from models.training.compose import Composer
from models.training.data import Cubes, Piece, away_from_marks
from models.training.regions import Region, RegionDrawer, rated
from tests.models.training.test_data import ball, even

SIDE = 48


def drawer(share: float = 0.45) -> RegionDrawer:
    """Cubes with a ball of 8 or 12 mm in the middle, a plain lung, and false positives in both."""
    cubes = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (8.0, 12.0)]
    false = [np.array([[10.0, 10, 10]])] * 2 + [np.array([[50.0, 50, 50], [30.0, 60, 70]])]
    weights = [np.array([0.1])] * 2 + [np.array([1.0, 0.5])]
    ratings = (np.array([0.25, np.nan]), np.array([2, -1]))
    composer = Composer(cubes, [even((100, 110, 120))])
    return RegionDrawer(composer, ratings, false, weights, Noise(64, 0), SIDE, share)


def drawn(seed: int, count: int, share: float = 0.45) -> list[Region]:
    rng = np.random.default_rng(seed)
    source = drawer(share)
    return [source.draw(rng) for _ in range(count)]


def test_rois_are_of_one_shape_and_of_both_kinds() -> None:
    """uint8 cubes of 48, a diameter where there is a nodule, in about the share asked for."""
    regions = drawn(0, 40)
    for region in regions:
        assert region.voxels.shape == region.mask.shape == (SIDE,) * 3
        assert region.voxels.dtype == region.mask.dtype == np.uint8
        assert region.voxels.flags.c_contiguous
    with_nodule = np.mean([region.diameter_mm > 0 for region in regions])
    assert 0.25 < with_nodule < 0.65


def test_a_nodule_lies_near_the_middle_with_its_size() -> None:
    sizes = []
    for region in drawn(1, 16, share=1.0):
        inside = np.argwhere(region.mask > 127)
        assert np.linalg.norm(inside - (SIDE - 1) / 2, axis=1).min() < 3
        sizes.append((6 / np.pi * len(inside)) ** (1 / 3) / region.diameter_mm)
    # of some there is a mirror image too, or a part is cut off
    assert np.median(sizes) == pytest.approx(1.0, abs=0.1)


def test_false_positives_have_no_diameter_and_no_mask() -> None:
    for region in drawn(2, 12, share=0.0):
        assert region.diameter_mm == 0
        near = region.mask[16:32, 16:32, 16:32]
        assert (near > 127).sum() == 0


def test_a_nodule_brings_its_ratings() -> None:
    nodules = drawn(3, 30, share=1.0)
    assert {region.texture for region in nodules} == {2, -1}
    known = [region for region in nodules if np.isfinite(region.malignancy)]
    assert known
    assert all(region.malignancy == 0.25 for region in known)
    assert all(abs(np.log(region.diameter_mm / 8)) < 0.3 for region in known)
    assert all(region.texture == -1 for region in drawn(4, 8, share=0.0))


def test_the_readers_means_become_targets() -> None:
    """Malignancy from 1.5 to 4.5 becomes 0 to 1; texture one of three classes."""
    cubes = Cubes((), (), np.array([1.0, 3.0, 5.0, np.nan]), np.array([1.0, 3.0, 5.0, np.nan]))
    malignancy, texture = rated(cubes)
    np.testing.assert_array_equal(malignancy, [0, 0.5, 1, np.nan])
    np.testing.assert_array_equal(texture, [0, 1, 2, -1])


def test_the_seed_decides() -> None:
    first, again, other = (drawn(seed, 4) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.voxels, b.voxels)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.diameter_mm == b.diameter_mm
    assert any((a.voxels != b.voxels).any() for a, b in zip(first, other, strict=True))


def test_locations_at_annotations_are_no_false_positives() -> None:
    """Neither at a nodule nor at an ignored mark, and only from 4 mm beyond their rim on."""
    voxels = np.zeros((8, 8, 8), np.uint8)
    piece = Piece(voxels, voxels, np.array([[20.0, 20, 20, 10]]), np.array([[60.0, 60, 60, 6]]))
    places = np.array([[20.0, 20, 28.5], [20, 20, 29.5], [60, 60, 66.5], [60, 60, 67.5]])
    np.testing.assert_array_equal(away_from_marks(places, piece, 4), [False, True, False, True])
