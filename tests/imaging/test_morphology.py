import numpy as np

from imaging.morphology import closed, closed_along_z, dilate, doubled, erode, halved, hull, opened
from imaging.volume import UInt8Array


def ball(radius: float, size: int = 21) -> UInt8Array:
    """A ball of ``radius`` cells in the middle of a cube."""
    grid = np.indices((size, size, size)) - size // 2
    return np.asarray(np.square(grid).sum(axis=0) <= radius**2).astype(np.uint8)


def test_a_dilated_point_is_a_ball() -> None:
    assert np.array_equal(dilate(ball(0), 5), ball(5))


def test_erosion_undoes_the_dilation_of_a_ball() -> None:
    assert np.array_equal(erode(dilate(ball(4), 3), 3), ball(4))


def test_opening_drops_what_is_thinner_than_the_ball() -> None:
    both = ball(5)
    both[:2] = 1
    left = opened(np.pad(both, 4), 2)[4:-4, 4:-4, 4:-4]
    assert left[:2].sum() == 0
    assert left[10, 10, 10] == 1


def test_closing_fills_a_dent_but_not_a_wide_hollow() -> None:
    block = np.zeros((20, 40, 60), np.uint8)
    block[:, 10:30, 5:55] = 1
    block[:, 10:18, 10:14] = 0
    block[:, 10:18, 20:50] = 0
    filled = closed(block, 5)
    assert filled[:, 13:18, 10:14].all()
    assert not filled[:, 10:16, 30:40].any()


def test_closing_along_z_bridges_gaps_up_to_the_given_length() -> None:
    line = np.zeros((20, 1, 2), np.uint8)
    line[[2, 9], 0, 0] = 1
    line[[2, 10], 0, 1] = 1
    assert closed_along_z(line, 6)[:, 0, :].sum(axis=0).tolist() == [8, 2]


def test_halving_and_doubling_keep_even_blocks() -> None:
    coarse = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(np.uint8)
    fine = doubled(coarse, (5, 8, 9))
    assert fine.shape == (5, 8, 9)
    assert np.array_equal(halved(fine), coarse)


def test_hull_of_a_slice_fills_its_bay() -> None:
    plane = np.ones((8, 9), np.uint8)
    plane[:5, 3:6] = 0
    assert hull(plane).all()
    assert not hull(np.zeros((8, 9), np.uint8)).any()
