"""The vocabulary: geometry and the HU window."""

from __future__ import annotations

import numpy as np

from imaging.volume import Geometry, Volume, from_window
from tests.imaging.bodies import to_window

OBLIQUE = Geometry(
    (2.5, 0.7, 0.8),
    (-120.0, -90.0, 40.0),
    np.array([[0.98, -0.199, 0.0], [0.199, 0.98, 0.0], [0.0, 0.0, 1.0]]),
)


def test_world_and_index_are_inverse() -> None:
    """A point that goes to the world and back is the same point."""
    index = np.array([[0.0, 0, 0], [3.5, 10, 20], [-2, 100.25, 7]])
    np.testing.assert_allclose(OBLIQUE.to_index(OBLIQUE.to_world(index)), index, atol=1e-9)


def test_index_steps_follow_the_spacing_of_their_axis() -> None:
    """One step along z moves by the slice spacing along the third column of the direction."""
    step = OBLIQUE.to_world([1, 0, 0]) - OBLIQUE.to_world([0, 0, 0])
    np.testing.assert_allclose(step, [0, 0, 2.5])
    step = OBLIQUE.to_world([0, 0, 1]) - OBLIQUE.to_world([0, 0, 0])
    np.testing.assert_allclose(step, np.array([0.98, 0.199, 0]) * 0.8)


def test_a_crop_keeps_its_place_in_the_patient() -> None:
    """Voxel 0 of a crop lies where the voxel lay that it was cut from."""
    np.testing.assert_allclose(
        OBLIQUE.cropped((4, 5, 6)).to_world([1, 1, 1]), OBLIQUE.to_world([5, 6, 7])
    )


def test_extent_counts_slices_with_their_thickness() -> None:
    """Ten slices of 2.5 mm are 25 mm."""
    volume = Volume(np.zeros((10, 4, 5), np.int16), OBLIQUE)
    np.testing.assert_allclose(volume.extent_mm, (25.0, 2.8, 4.0))


def test_the_window_maps_its_ends_to_0_and_255_and_clips() -> None:
    """-1000 HU is 0, 400 HU is 255, what lies outside is clipped."""
    hu = np.array([-3024, -1000, -302, 400, 3000], np.int16)
    assert to_window(hu).tolist() == [0, 0, 127, 255, 255]


def test_the_window_is_undone_within_half_a_level() -> None:
    """HU inside the window come back within half of 5.5 HU."""
    hu = np.arange(-1000, 401, dtype=np.int16)
    assert np.abs(from_window(to_window(hu)) - hu).max() <= 3
