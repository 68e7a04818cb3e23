import numpy as np
import pytest

from evaluation.stability.changes import (
    CUT_MM,
    NOISE_HU,
    PASTED_MM,
    Ball,
    cut_around,
    cut_sides,
    erased,
    mirrored,
    noisy,
    part_of,
    pasted,
    shifted_cubes,
    shifted_grid,
)
from imaging.preprocess import Preprocessed, preprocess
from imaging.volume import FloatArray, Geometry, Triple, UInt8Array
from tests.evaluation.plain_chest import LUNG_HU, TISSUE_HU, chest, donor, in_lung
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


def noise_cube(seed: int = 0) -> Preprocessed:
    rng = np.random.default_rng(seed)
    return Preprocessed(rng.integers(40, 200, (50, 50, 50)).astype(np.uint8), Geometry())


def centre_of_tissue(box: Preprocessed) -> FloatArray:
    """World point of the middle of what is denser than lung."""
    dense = np.clip(box.voxels.astype(float) - LUNG - 3, 0, None)
    at = np.stack(np.meshgrid(*map(np.arange, dense.shape), indexing="ij"), -1)
    return box.geometry.to_world((at * dense[..., None]).sum((0, 1, 2)) / dense.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift_mm", [0.25, 0.75])
def test_a_shifted_cube_moves_its_nodule_and_keeps_its_point(axis: int, shift_mm: float) -> None:
    box = cube(Ball(MIDDLE, 12.0))
    before, after = shifted_cubes(box, axis, shift_mm)
    middle = box.geometry.to_world(MIDDLE)
    moved = before.geometry.to_index(middle) - after.geometry.to_index(middle)
    assert moved == pytest.approx(np.eye(3)[axis] * shift_mm)
    for one in (before, after):
        assert one.voxels.shape == box.voxels.shape
        assert centre_of_tissue(one) == pytest.approx(middle, abs=0.02)


def test_both_grids_of_a_shifted_cube_are_blurred_alike() -> None:
    """One grid on the voxels and one between them would differ by the blur of the interpolation."""
    box = noise_cube()
    before, after = (one.voxels.astype(float).std() for one in shifted_cubes(box, 1, 0.5))
    assert before == pytest.approx(after, rel=0.01)
    assert before < 0.85 * box.voxels.std()


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


def test_a_location_in_a_scan_is_cut_out_as_cubes_are() -> None:
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


def test_a_cube_loses_layers_on_random_sides_and_keeps_its_nodule() -> None:
    box, location = noise_cube(), Ball(MIDDLE, 14.0)
    sides = set()
    for seed in range(20):
        cut = cut_sides(box, location, np.random.default_rng(seed))
        assert cut is not None
        index = cut.geometry.to_index(box.geometry.to_world(MIDDLE))
        low, high = 25 - index, cut.voxels.shape - index - 25
        layers = np.concatenate([low, -high])
        assert set(layers.tolist()) <= {0, *range(4, 11)}
        assert layers.any()
        sides |= set(np.flatnonzero(layers).tolist())
        at = tuple(int(v) for v in np.rint(index))
        assert cut.voxels[at] == box.voxels[25, 25, 25]
    assert sides == set(range(6))


def test_a_nodule_that_fills_the_cube_is_not_cut() -> None:
    assert cut_sides(noise_cube(), Ball(MIDDLE, 40.0), np.random.default_rng(0)) is None


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


def test_a_neighbour_is_erased_and_the_location_stays() -> None:
    location, neighbour = Ball(MIDDLE, 6.0), Ball((25.0, 25.0, 8.0), 6.0)
    box = cube(location, neighbour)
    found = erased(box, location, [neighbour], np.random.default_rng(0))
    assert found is not None
    gone = away(box.voxels, neighbour.index_zyx) <= 5
    assert (found.voxels[gone] == LUNG).all()
    around = away(box.voxels, location.index_zyx) <= 6
    assert np.array_equal(found.voxels[around], box.voxels[around])


@pytest.mark.parametrize(
    ("centre", "reason"),
    [((25.0, 25.0, 15.0), "touches the location"), ((25.0, 25.0, 4.0), "lies at the wall")],
)
def test_a_neighbour_at_location_or_wall_is_not_erased(centre: Triple, reason: str) -> None:
    location, neighbour = Ball(MIDDLE, 6.0), Ball(centre, 6.0)
    box = cube(location, neighbour)
    if "wall" in reason:
        box.voxels[:, :, :4] = TISSUE
    assert erased(box, location, [neighbour], np.random.default_rng(0)) is None


def test_what_fills_the_gap_is_lung_as_dense_as_around_it() -> None:
    """The other half of the cube is denser lung; no copy of the location fills the gap."""
    location, neighbour = Ball(MIDDLE, 6.0), Ball((25.0, 25.0, 8.0), 6.0)
    box = cube(location, neighbour)
    box.voxels[26:][box.voxels[26:] == LUNG] = LUNG + 15
    found = erased(box, location, [neighbour], np.random.default_rng(3))
    assert found is not None
    gap = found.voxels[21:26, 23:28, 6:11].astype(int)
    assert abs(gap - LUNG).max() <= 16


@pytest.mark.parametrize("seed", range(5))
def test_a_nodule_is_pasted_at_its_distance_and_the_location_stays(seed: int) -> None:
    location = Ball(MIDDLE, 6.0)
    box = cube(location)
    found = pasted(box, location, [], [donor(6.0)], np.random.default_rng(seed))
    assert found is not None
    changed = found.voxels.astype(int) - box.voxels > 60
    at = np.argwhere(changed).mean(0)
    distance = float(np.linalg.norm(at - MIDDLE))
    assert PASTED_MM[0] - 0.5 <= distance <= PASTED_MM[1] + 0.5
    assert changed.sum() == pytest.approx(np.pi / 6 * 6**3, rel=0.4)
    around = away(box.voxels, location.index_zyx) <= 5
    assert np.array_equal(found.voxels[around], box.voxels[around])


def test_nothing_is_pasted_outside_of_lung_or_without_donors() -> None:
    location, wall = Ball(MIDDLE, 6.0), cube()
    wall.voxels[:] = TISSUE
    rng = np.random.default_rng(0)
    assert pasted(wall, location, [], [donor(6.0)], rng) is None
    assert pasted(cube(location), location, [], [], rng) is None
