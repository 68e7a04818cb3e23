"""The vocabulary: geometry and the HU window."""

from itertools import permutations, product

import numpy as np
import pytest

from imaging.volume import Geometry, Volume, from_window, to_patient_axes
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
