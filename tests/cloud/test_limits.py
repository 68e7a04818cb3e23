"""What the service takes."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.limits import can_be_padded, crop_mask, is_compatible, pad
from imaging.roi import cut_roi

FULL = (48, 48, 48)
SMALL = [(32, 32, 32), (16, 48, 48), (17, 31, 48)]


@pytest.mark.parametrize("shape", SMALL)
def test_a_smaller_region_becomes_the_middle_of_a_full_one(shape: tuple[int, int, int]) -> None:
    """Its voxels lie where a full region around the same candidate has them."""
    box = np.random.default_rng(1).integers(0, 256, (80, 80, 80), dtype=np.uint8)
    centre = (40.2, 39.6, 41.0)
    whole, filled = cut_roi(box, centre, FULL), pad(cut_roi(box, centre, shape), FULL)
    assert filled.shape == FULL
    inner = tuple(slice(24 - n // 2, 24 - n // 2 + n) for n in shape)
    np.testing.assert_array_equal(filled[inner], whole[inner])


def test_around_it_lies_its_mirror_image() -> None:
    """The slices next to the first and the last are the same again, outwards."""
    slab = np.arange(16, dtype=np.uint8)[:, None, None].repeat(48, 1).repeat(48, 2)
    filled = pad(slab, FULL)[:, 0, 0]
    np.testing.assert_array_equal(filled[13:19], [2, 1, 0, 0, 1, 2])
    np.testing.assert_array_equal(filled[29:35], [13, 14, 15, 15, 14, 13])


def test_a_full_region_is_left_alone() -> None:
    whole = np.zeros(FULL, np.uint8)
    assert pad(whole, FULL) is whole


@pytest.mark.parametrize("shape", SMALL)
def test_a_mask_is_cut_back_to_what_was_sent(shape: tuple[int, int, int]) -> None:
    """A voxel of the mask keeps its place in the region."""
    marked = np.zeros(shape, np.uint8)
    marked[3, 5, 7] = 1
    mask = pad(marked, FULL) == 1
    np.testing.assert_array_equal(crop_mask(mask, shape), marked == 1)


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        (FULL, True),
        *((shape, True) for shape in SMALL),
        ((15, 48, 48), False),
        ((48, 48, 49), False),
        ((0, 48, 48), False),
        ((48, 48), False),
    ],
)
def test_a_third_of_each_side_is_the_least(shape: tuple[int, ...], taken: bool) -> None:
    """Smaller, larger and flat ones cannot be read."""
    assert can_be_padded(shape, FULL) is taken


@pytest.mark.parametrize(
    ("expected", "served", "taken"),
    [
        ("", "1.0", True),
        ("1.0", "1.0", True),
        ("1.4.2", "1.0", True),
        ("1", "1.0", True),
        ("2.0", "1.0", False),
        ("10.0", "1.0", False),
    ],
)
def test_a_version_goes_with_its_own_major_one(expected: str, served: str, taken: bool) -> None:
    """A caller that names no version takes any; another major version answers on another scale."""
    assert is_compatible(expected, served) is taken
