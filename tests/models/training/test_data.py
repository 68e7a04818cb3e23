import numpy as np
import pytest

from models.training.data import NONE, Piece, crop, mirrored, zoomed


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], diameter: float) -> Piece:
    """A piece with one bright ball, its mask and its mark."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = np.linalg.norm(grid - np.array(centre), axis=-1) <= diameter / 2
    voxels = np.where(inside, 200, 20).astype(np.uint8)
    mask = np.where(inside, 255, 0).astype(np.uint8)
    return Piece(voxels, mask, np.array([[*centre, diameter]]), NONE)


def even(shape: tuple[int, int, int], grey: int = 40) -> Piece:
    """A piece of one grey, that of lung, without a mark."""
    return Piece(*(np.full(shape, v, np.uint8) for v in (grey, 0)), NONE, NONE)


def check(piece: Piece, tolerance: float = 0.6) -> None:
    """The bright voxels' centroid is where the mark says, and the mask agrees."""
    z, y, x, diameter = piece.nodules[0]
    bright = np.argwhere(piece.voxels > 110)
    np.testing.assert_allclose(bright.mean(0), (z, y, x), atol=tolerance)
    np.testing.assert_allclose(np.argwhere(piece.mask > 127).mean(0), (z, y, x), atol=tolerance)
    assert len(bright) == pytest.approx(np.pi / 6 * diameter**3, rel=0.12)


@pytest.mark.parametrize("axes", [(True, False, False), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("swap", [False, True])
def test_a_mirrored_piece_has_its_mark_on_the_ball(
    axes: tuple[bool, bool, bool], swap: bool
) -> None:
    check(mirrored(ball((30, 34, 38), (11, 14, 20), 12), axes, swap))


def test_a_cropped_piece_has_locations_in_its_own_coordinates() -> None:
    part = crop(ball((40, 40, 40), (20, 21, 22), 10), (5, 6, 7), (30, 30, 30))
    assert part.nodules[0].tolist() == [15, 15, 15, 10]
    check(part)


@pytest.mark.parametrize("factor", [0.8, 1.3, 2.5])
def test_a_zoomed_piece_has_a_larger_nodule_at_the_right_place(factor: float) -> None:
    large = zoomed(ball((30, 34, 38), (14, 15, 20), 12), factor)
    assert large.voxels.shape == tuple(round(n * factor) for n in (30, 34, 38))
    assert large.nodules[0, 3] == pytest.approx(12 * factor)
    check(large, tolerance=0.8)
