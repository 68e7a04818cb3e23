import numpy as np
import pytest

from models.training.augment import (
    Noise,
    flip,
    kernelled,
    resized,
    simulate_scanner,
    thickened,
    toned,
    zoom_factor,
)
from models.training.data import Piece
from tests.models.training.test_data import ball


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_thick_slices_blur_along_z_only() -> None:
    voxels = np.zeros((48, 16, 16), np.uint8)
    voxels[24:, :, :8] = 200
    out = thickened(voxels, rng())
    along_z = np.abs(np.diff(out[:, 8, 0].astype(int)))
    assert (along_z > 0).sum() > 1
    np.testing.assert_array_equal(out[40, 0], voxels[40, 0])


def test_tone_is_a_line() -> None:
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(4, 4, 4)
    for seed in range(5):
        assert (np.diff(toned(grey, rng(seed)).ravel().astype(int)) >= 0).all()


def test_kernels_soften_and_sharpen() -> None:
    """Over many draws an edge overshoots in some and gets softer in others; even ground stays."""
    voxels = np.full((4, 24, 24), 60, np.uint8)
    voxels[:, :, 12:] = 160
    outs = [kernelled(voxels, rng(seed)) for seed in range(40)]
    assert any(out.max() > 180 for out in outs)
    assert any((out[0, 12, 11] > 60) and out.max() <= 160 for out in outs)
    assert all(out[0, 12, 2] == 60 for out in outs)


def test_noise_is_of_many_kinds() -> None:
    noise, even = Noise(48, 0), np.full((24, 24, 24), 128, np.uint8)
    outs = [noise.added(even, rng(seed)).astype(float) - 128 for seed in range(60)]
    spreads = [out.std() for out in outs]
    assert min(spreads) < 1.5
    assert max(spreads) > 7
    loud = [out for out in outs if out.std() > 3]
    in_plane = [np.corrcoef(out[:, :, 1:].ravel(), out[:, :, :-1].ravel())[0, 1] for out in loud]
    across = [np.corrcoef(out[1:].ravel(), out[:-1].ravel())[0, 1] for out in loud]
    assert min(in_plane) < -0.1
    assert max(in_plane) > 0.5
    assert min(across) < 0.1
    assert max(across) > 0.5


def test_turning_keeps_the_nodule_in_its_mask() -> None:
    """Whole lungs keep their head up."""
    piece = ball((20, 30, 40), (6, 22, 11), 8.0)
    for seed in range(12):
        part = flip(piece, rng(seed))
        z, y, x = np.rint(part.nodules[0, :3]).astype(int)
        assert part.mask[z, y, x] == 255
        assert flip(piece, rng(seed), keep_head_up=True).nodules[0, 0] == 6.0


def test_large_nodules_become_masses_and_small_ones_do_not() -> None:
    """From 12 mm on some are scaled up to 60 mm at most."""
    small, large = (
        [zoom_factor(ball((50,) * 3, (25,) * 3, mm), rng(s)) for s in range(60)] for mm in (5, 20)
    )
    assert max(small) <= 1.25
    assert 1.5 < max(large) <= 3.0
    assert 20 * max(large) <= 60


def test_resizing_scales_the_diameter() -> None:
    sizes = {resized(ball((50,) * 3, (25,) * 3, 8.0), rng(s)).nodules[0, 3] for s in range(12)}
    assert len(sizes) > 3


@pytest.mark.parametrize("noise", [None, Noise(64, 1)])
def test_another_scanner_changes_voxels_and_no_truth(noise: Noise | None) -> None:
    piece = ball((40, 40, 40), (20, 20, 20), 8.0)
    outs: list[Piece] = [simulate_scanner(piece, rng(seed), noise) for seed in range(10)]
    for out in outs:
        assert out.voxels.shape == piece.voxels.shape
        assert out.mask is piece.mask
        assert out.nodules is piece.nodules
    assert sum(not np.array_equal(out.voxels, piece.voxels) for out in outs) >= 7
