"""Cutting regions out of the lung box."""

import numpy as np

from imaging.roi import cut_roi


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
