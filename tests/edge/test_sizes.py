from __future__ import annotations

import math

from edge.choose import Option, efficient
from edge.sizes import POLICY, Size

FULL = (48, 48, 48)


def test_a_smaller_region_is_a_cube_or_a_slab() -> None:
    """Of 48 voxels: all, 32 a side, or 16 slices of those; in bytes 1, 8/27 and 4/27."""
    shapes = [size.shape_of(FULL) for size in Size]
    assert shapes == [FULL, (32, 32, 32), (16, 32, 32)]
    assert [math.prod(shape) for shape in shapes] == [110592, 32768, 16384]


def test_a_reading_is_worth_what_the_policy_says() -> None:
    """By default what was measured: 1, 0.94 and 0.88 of a full one."""
    assert [POLICY.share(size) for size in Size] == [1.0, 0.94, 0.88]


def test_each_size_is_worth_sending_somewhere() -> None:
    """None is both larger and worth less than another: as the link gets thinner all have a turn."""
    options = [Option(s, POLICY.share(s), math.prod(s.shape_of(FULL))) for s in Size]
    assert [one.size for one in efficient(options)] == [Size.SLAB, Size.REDUCED, Size.FULL]


def test_a_large_nodule_is_not_cut() -> None:
    """A nodule goes into a smaller region if it takes three quarters of its side at most."""
    assert set(POLICY.sizes_for(12.0, FULL)) == set(Size)
    assert set(POLICY.sizes_for(24.0, FULL)) == {Size.REDUCED, Size.FULL}
    assert POLICY.sizes_for(24.1, FULL) == (Size.FULL,)
    assert POLICY.sizes_for(60.0, FULL) == (Size.FULL,)
