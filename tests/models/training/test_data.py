import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.data.folder import CALIBRATION, SUBSETS, TRAINED_SCANS, marked_scans
from models.training.data import (
    NONE,
    Cubes,
    Noise,
    Piece,
    balls,
    crop,
    flip,
    hollowed,
    kernelled,
    load_cubes,
    mirrored,
    resized,
    scans_of_role,
    shifted,
    simulate_scanner,
    thickened,
    toned,
    zoom_factor,
    zoomed,
)


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
    assert large.nodules[0, 3] == pytest.approx(12 * factor, rel=0.02)
    check(large, tolerance=0.8)


def test_a_zoom_that_leaves_whole_voxels_moves_the_marks_by_what_is_left() -> None:
    """50 voxels times 0.25 are 12: the middle stays the middle, and the ball fills as much."""
    small = zoomed(ball((50, 50, 50), (24.5, 24.5, 24.5), 20), 0.25)
    np.testing.assert_allclose(small.nodules[0], [5.5, 5.5, 5.5, 20 * 12 / 50])


def test_a_kernel_blurs_within_slices_only() -> None:
    slices = np.zeros((6, 8, 8), np.uint8)
    slices[3] = 200  # what is beside it in another slice must not show
    for seed in range(5):
        assert (kernelled(slices, np.random.default_rng(seed)) == slices).all()


@pytest.mark.parametrize("parts", [(0.0, 0.0, 0.0), (0.5, 0.25, 0.75), (1.0, 0.0, 0.5)])
def test_a_shift_by_parts_of_a_voxel_moves_the_marks_with_the_voxels(
    parts: tuple[float, float, float],
) -> None:
    piece = ball((30, 34, 38), (14, 15, 20), 12)
    moved = shifted(piece, parts)
    assert moved.voxels.shape == (29, 33, 37)
    np.testing.assert_allclose(moved.nodules[0], [14 - parts[0], 15 - parts[1], 20 - parts[2], 12])
    bright = moved.voxels.astype(float) - 20  # the centre of mass, to a part of a voxel
    at = np.stack(np.indices(bright.shape)).reshape(3, -1)
    np.testing.assert_allclose((at * bright.ravel()).sum(1) / bright.sum(), moved.nodules[0, :3],
                               atol=0.05)  # fmt: skip
    check(moved)


def test_a_ball_is_drawn_around_each_mark() -> None:
    """A mark at the border is cut by it."""
    mask = balls((20, 24, 28), np.array([[10.2, 11.5, 12, 8], [0, 0, 0, 6]]))
    one = np.argwhere(mask[5:] > 0) + np.array([5, 0, 0])
    np.testing.assert_allclose(one.mean(0), [10.2, 11.5, 12], atol=0.3)
    assert len(one) == pytest.approx(np.pi / 6 * 8**3, rel=0.1)
    assert mask[0, 0, 0] == 255
    assert set(np.unique(mask)) == {0, 255}


@cache
def cubes_of(data: Path, split: str) -> Cubes:
    """The cubes of a split; reading them takes seconds."""
    return load_cubes(data / "nodules", split)


@pytest.mark.long
def test_calibration_patients_are_in_no_training_cube(shared_data: Path) -> None:
    """The two parts of `train.npz` share no patient; no scan of a calibration patient trains."""
    folder = shared_data / "nodules"
    train, kept = (cubes_of(shared_data, split) for split in ("train", CALIBRATION))
    assert set(train.patients).isdisjoint(kept.patients)
    with (folder / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    assert len(train.pieces) + len(kept.pieces) == len(rows)
    subset = {row["patient"]: int(row["subset"]) for row in rows}
    assert {subset[patient] for patient in kept.patients} == set(SUBSETS)
    with (shared_data / "lidc" / "scans.csv").open(newline="") as file:
        trained = {row["patient"] for row in csv.DictReader(file) if row["role"] == "train"}
    assert trained.isdisjoint(kept.patients)
    assert set(TRAINED_SCANS) <= trained


@pytest.mark.long
def test_the_cubes_of_each_split_have_their_own_voxels_and_marks(shared_data: Path) -> None:
    """A cube's own nodule lies in its middle: rows and cubes belong together in a part, too."""
    for split in (CALIBRATION, "val"):
        cubes = cubes_of(shared_data, split)
        assert len(cubes.pieces) == len(cubes.patients) == len(cubes.malignancy)
        inside = []
        for piece in cubes.pieces:
            z, y, x = np.rint(piece.nodules[0, :3]).astype(int)
            assert np.abs(piece.nodules[0, :3] - 24.5).max() < 1.5
            inside.append(piece.mask[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].any())
        assert np.mean(inside) > 0.9


@pytest.mark.long
def test_whole_scans_come_with_what_must_be_found_and_what_is_ignored(shared_data: Path) -> None:
    """Of every collection: known lesions, those seen by eye, and doubtful places."""
    names = [folder.name for folder, *_ in marked_scans(shared_data, "val")]
    boxes = dict(zip(names, scans_of_role(shared_data, "val"), strict=True))
    assert {"lidc_0005", "lidc_0028"} <= set(boxes)
    assert len(boxes["lidc_0005"].nodules) == 2
    assert len(boxes["lidc_0028"].nodules) == 0
    assert len(boxes["lidc_0028"].ignored) > 0
    for piece in boxes.values():
        for z, y, x, _ in piece.nodules:
            assert piece.voxels[round(z), round(y), round(x)] > 75
            assert piece.mask[round(z), round(y), round(x)] == 255


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_thick_slices_blur_along_z_only() -> None:
    voxels = np.zeros((48, 16, 16), np.uint8)
    voxels[24:, :, :8] = 200
    out = thickened(voxels, rng())
    along_z = np.abs(np.diff(out[:, 8, 0].astype(int)))
    assert (along_z > 0).sum() > 1
    np.testing.assert_array_equal(out[40, 0], voxels[40, 0])


def test_a_cavity_is_air_inside_a_wall() -> None:
    piece = ball((40, 40, 40), (20.0, 20.0, 20.0), 16.0)
    for seed in range(6):
        found = hollowed(piece, rng(seed))
        assert found.voxels[20, 20, 20] < 50  # air, up to -780 HU, and the rim's blur
        changed = found.voxels != piece.voxels
        assert piece.mask[changed].all()
        assert found.voxels[20, 20, 28] == found.voxels[12, 20, 20] == 200
        assert found.nodules is piece.nodules
    thin = ball((40, 40, 40), (20.0, 20.0, 20.0), 4.0)
    assert hollowed(thin, rng()) is thin


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


def test_some_nodules_of_middle_size_become_small() -> None:
    """Of 6 to 16 mm: small ones, which the cubes have too few of, are made of them."""
    factors = [zoom_factor(ball((50,) * 3, (25,) * 3, 10), rng(s)) for s in range(60)]
    small = [10 * factor for factor in factors if factor < 0.8]
    assert 8 < len(small) < 30
    assert min(small) >= 3.5
    assert max(small) <= 6.0


def test_resizing_scales_the_diameter() -> None:
    sizes = {resized(ball((50,) * 3, (25,) * 3, 8.0), rng(s)).nodules[0, 3] for s in range(12)}
    assert len(sizes) > 3


def test_another_scanner_changes_voxels_and_no_truth() -> None:
    piece = ball((40, 40, 40), (20, 20, 20), 8.0)
    outs: list[Piece] = [simulate_scanner(piece, rng(seed)) for seed in range(10)]
    for out in outs:
        assert out.voxels.shape == piece.voxels.shape
        assert out.mask is piece.mask
        assert out.nodules is piece.nodules
    assert sum(not np.array_equal(out.voxels, piece.voxels) for out in outs) >= 7
