import numpy as np
import pytest

from evaluation.stability.readings import (
    CUT_MM,
    NOISE_HU,
    Ball,
    cut_around,
    mirrored,
    noisy,
    part_of,
    shifted_grid,
)
from imaging.preprocess import Preprocessed, preprocess
from imaging.volume import FloatArray, Geometry, Triple, UInt8Array
from tests.evaluation.plain_chest import LUNG_HU, TISSUE_HU, chest, in_lung
from tests.imaging.volumes import to_window

LUNG, TISSUE = (int(level) for level in to_window(np.array([LUNG_HU, TISSUE_HU])))
HU_PER_LEVEL = 1400 / 255
MIDDLE: Triple = (25.0, 25.0, 25.0)


def cube(*nodules: Ball, side: int = 50) -> Preprocessed:
    """Lung with balls of tissue."""
    voxels = np.full((side, side, side), LUNG, np.uint8)
    for nodule in nodules:
        voxels[away(voxels, nodule.index_zyx) <= nodule.diameter_mm / 2] = TISSUE
    return Preprocessed(voxels, Geometry())


def away(voxels: UInt8Array, centre_zyx: Triple) -> FloatArray:
    grid = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), -1)
    return np.asarray(np.linalg.norm(grid - np.array(centre_zyx), axis=-1))


def centre_of_tissue(box: Preprocessed) -> FloatArray:
    """World point of the middle of what is denser than lung."""
    dense = np.clip(box.voxels.astype(float) - LUNG - 3, 0, None)
    at = np.stack(np.meshgrid(*map(np.arange, dense.shape), indexing="ij"), -1)
    return box.geometry.to_world((at * dense[..., None]).sum((0, 1, 2)) / dense.sum())


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (2.5, 0.7, 0.7)])
def test_a_grid_that_is_not_shifted_gives_the_lung_box_again(spacing: Triple) -> None:
    """Equal but for one level: the edge rounds after each axis."""
    volume = chest(spacing)
    box = preprocess(volume)
    again = shifted_grid(volume, box, 0, 0.0)
    assert again.geometry.origin_mm == pytest.approx(box.geometry.origin_mm)
    assert np.abs(again.voxels.astype(int) - box.voxels).max() <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_grid_shows_the_same_point_at_another_index(axis: int) -> None:
    volume = chest()
    z, y, x = (int(v) for v in np.rint(volume.geometry.to_index(in_lung(0))))
    volume.hu[z - 3 : z + 4, y - 4 : y + 5, x - 4 : x + 5] = TISSUE_HU
    box = preprocess(volume)
    shifted = shifted_grid(volume, box, axis, 0.5)
    point = box.geometry.to_world([[40.0, 40.0, 40.0]])
    assert (box.geometry.to_index(point) - shifted.geometry.to_index(point))[0] == pytest.approx(
        np.eye(3)[axis] * 0.5, abs=0.01
    )
    found = []
    for one in (box, shifted):
        near = np.rint(one.geometry.to_index(volume.geometry.to_world([z, y, x])))
        found.append(centre_of_tissue(part_of(one, near - 12, near + 13)))
    assert found[0] == pytest.approx(found[1], abs=0.05)
    assert not np.array_equal(box.voxels, shifted.voxels)


def test_a_location_is_cut_out_with_its_surroundings() -> None:
    box = preprocess(chest())
    location = Ball((40.0, 45.0, 60.0), 8.0)
    cut = cut_around(box, location)
    assert max(cut.voxels.shape) == CUT_MM
    index = cut.geometry.to_index(box.geometry.to_world(location.index_zyx))
    assert index == pytest.approx([25.0, 25.0, 25.0])
    assert cut.voxels[25, 25, 25] == box.voxels[40, 45, 60]
    assert cut.lungs is box.lungs
    assert cut.inside(index[None])[0] == box.inside(np.array([location.index_zyx]))[0]


def test_at_the_face_of_the_lung_box_less_is_cut_out() -> None:
    box = preprocess(chest())
    cut = cut_around(box, Ball((5.0, 45.0, 60.0), 8.0))
    assert cut.voxels.shape == (30, 50, 50)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mirror_image_keeps_points_and_lungs(axis: int) -> None:
    box = preprocess(chest())
    image = mirrored(box, axis)
    for index in ((40, 45, 30), (10, 20, 33), (2, 3, 4)):
        point = box.geometry.to_world(index)
        there = image.geometry.to_index(point)
        z, y, x = (int(v) for v in np.rint(there))
        assert there == pytest.approx([z, y, x])
        assert image.voxels[z, y, x] == box.voxels[index]
        assert image.inside(there[None]) == box.inside(np.array([index], float))


def test_noise_has_its_deviation_and_stays_in_the_window() -> None:
    box = cube()
    added = noisy(box, np.random.default_rng(1)).voxels.astype(float) - LUNG
    assert added.std() * HU_PER_LEVEL == pytest.approx(NOISE_HU, rel=0.01)
    assert abs(added.mean()) < 0.1
    black = Preprocessed(np.zeros((9, 9, 9), np.uint8), Geometry())
    assert noisy(black, np.random.default_rng(1)).voxels.max() < 30
