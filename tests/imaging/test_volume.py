"""Geometry and the HU window, and that what is resampled or cut out keeps its place."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from imaging.errors import IrregularGeometry
from imaging.preprocess import Preprocessed, preprocess, resample
from imaging.roi import cut_roi
from imaging.volume import Geometry, Volume, from_window, to_patient_axes
from tests.evaluation.plain_chest import chest
from tests.imaging.volumes import ramp, to_window

OBLIQUE = Geometry(
    (2.5, 0.7, 0.8),
    (-120.0, -90.0, 40.0),
    np.array([[0.98, -0.199, 0.0], [0.199, 0.98, 0.0], [0.0, 0.0, 1.0]]),
)


def test_world_and_index_are_inverse() -> None:
    index = np.array([[0.0, 0, 0], [3.5, 10, 20], [-2, 100.25, 7]])
    np.testing.assert_allclose(OBLIQUE.to_index(OBLIQUE.to_world(index)), index, atol=1e-9)


def test_index_steps_follow_the_spacing_of_their_axis() -> None:
    step = OBLIQUE.to_world([1, 0, 0]) - OBLIQUE.to_world([0, 0, 0])
    np.testing.assert_allclose(step, [0, 0, 2.5])
    step = OBLIQUE.to_world([0, 0, 1]) - OBLIQUE.to_world([0, 0, 0])
    np.testing.assert_allclose(step, np.array([0.98, 0.199, 0]) * 0.8)


def test_a_crop_keeps_its_place_in_the_patient() -> None:
    np.testing.assert_allclose(
        OBLIQUE.cropped((4, 5, 6)).to_world([1, 1, 1]), OBLIQUE.to_world([5, 6, 7])
    )


def test_extent_counts_slices_with_their_thickness() -> None:
    volume = Volume(np.zeros((10, 4, 5), np.int16), OBLIQUE)
    np.testing.assert_allclose(volume.extent_mm, (25.0, 2.8, 4.0))


def test_the_window_is_undone_within_half_a_level() -> None:
    hu = np.arange(-1000, 401, dtype=np.int16)
    assert np.abs(from_window(to_window(hu)) - hu).max() <= 3


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
def test_patient_axes_keep_every_voxel_at_its_place(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    direction = np.zeros((3, 3))
    for index_axis, world_axis in enumerate(order):
        direction[world_axis, index_axis] = signs[index_axis]
    volume = ramp(Geometry((2.0, 1.0, 1.5), (5.0, -7.0, 11.0), direction), (4, 5, 6))
    hu, geometry = to_patient_axes(volume.hu, volume.geometry)
    np.testing.assert_allclose(geometry.direction, np.eye(3))
    np.testing.assert_array_equal(hu, ramp(geometry, hu.shape).hu)


def test_a_small_tilt_stays_in_the_geometry() -> None:
    c, s = np.cos(0.2), np.sin(0.2)
    tilted = Geometry((1.0, 1.0, 1.0), (0, 0, 0), np.array([[1, 0, 0], [0, c, -s], [0, s, c]]))
    _, geometry = to_patient_axes(ramp(tilted, (5, 6, 7)).hu, tilted)
    np.testing.assert_allclose(geometry.direction, tilted.direction)


def test_resampling_keeps_a_linear_picture_linear_at_its_place() -> None:
    volume = ramp(Geometry((2.5, 0.7, 0.8), (-20.0, 10.0, 30.0)), (20, 60, 70))
    voxels, geometry = resample(volume.hu, volume.geometry)
    np.testing.assert_allclose(geometry.spacing_mm, 1.0, rtol=0.02)
    expected = to_window(ramp(geometry, voxels.shape).hu)
    inner = (slice(2, -2),) * 3
    difference = voxels[inner].astype(int) - expected[inner].astype(int)
    assert np.abs(difference).max() <= 2


def test_without_lungs_given_everything_is_inside() -> None:
    box = Preprocessed(np.zeros((4, 4, 4), np.uint8), Geometry())
    assert box.inside(np.array([[0.0, 0, 0], [3, 3, 3]])).all()


def test_lungs_larger_than_any_are_refused_before_they_are_resampled() -> None:
    """Slices that are stated too far apart: 75 s went into lungs of five metres."""
    volume = chest()
    wrong = replace(volume.geometry, spacing_mm=(18.0, *volume.geometry.spacing_mm[1:]))
    with pytest.raises(IrregularGeometry, match=r"its lungs would be 7\d\d x"):
        preprocess(replace(volume, geometry=wrong), "a study")


def numbered(shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 whose value tells the place."""
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def test_beyond_the_face_the_array_is_mirrored() -> None:
    voxels = numbered((10, 10, 10))
    roi = cut_roi(voxels, (1, 5, 9), (6, 4, 6))
    np.testing.assert_array_equal(roi, np.pad(voxels, 3, mode="symmetric")[1:7, 6:10, 9:15])


def test_an_roi_larger_than_the_array_is_filled_by_repeated_mirrors() -> None:
    voxels = numbered((3, 60, 60))
    roi = cut_roi(voxels, (1, 30, 30), (48, 48, 48))
    assert roi.shape == (48, 48, 48)
    assert set(np.unique(roi[:, 0, 0])) == set(np.unique(voxels[:, 6, 6]))


def test_an_roi_that_lies_inside_is_a_copy_of_its_own() -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (20, 21, 22), np.uint8)
    for centre in ((8.0, 8.0, 8.0), (12.0, 13.0, 14.0)):
        region = cut_roi(voxels, centre, (16, 16, 16))
        z, y, x = (int(middle) - 8 for middle in centre)
        np.testing.assert_array_equal(region, voxels[z : z + 16, y : y + 16, x : x + 16])
        assert region.flags.c_contiguous
        assert not np.shares_memory(region, voxels)
