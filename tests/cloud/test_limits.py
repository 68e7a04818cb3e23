"""Small ROIs are padded, and their masks cropped."""

import numpy as np
import pytest

from cloud.limits import crop_mask, pad
from imaging.roi import cut_roi

FULL = (48, 48, 48)
SMALL = [(32, 32, 32), (16, 48, 48), (17, 31, 48)]


@pytest.mark.parametrize("shape", SMALL)
def test_a_smaller_roi_becomes_the_middle_of_a_full_one(shape: tuple[int, int, int]) -> None:
    """Its voxels lie where a full region around the same candidate has them."""
    box = np.random.default_rng(1).integers(0, 256, (80, 80, 80), dtype=np.uint8)
    centre = (40.2, 39.6, 41.0)
    whole, filled = cut_roi(box, centre, FULL), pad(cut_roi(box, centre, shape), FULL)
    assert filled.shape == FULL
    inner = tuple(slice(24 - n // 2, 24 - n // 2 + n) for n in shape)
    np.testing.assert_array_equal(filled[inner], whole[inner])
    # a voxel of the mask keeps its position in the ROI
    marked = np.zeros(shape, np.uint8)
    marked[3, 5, 7] = 1
    np.testing.assert_array_equal(crop_mask(pad(marked, FULL) == 1, shape), marked == 1)


def test_around_it_lies_its_mirror_image() -> None:
    slab = np.arange(16, dtype=np.uint8)[:, None, None].repeat(48, 1).repeat(48, 2)
    filled = pad(slab, FULL)[:, 0, 0]
    np.testing.assert_array_equal(filled[13:19], [2, 1, 0, 0, 1, 2])
    np.testing.assert_array_equal(filled[29:35], [13, 14, 15, 15, 14, 13])
