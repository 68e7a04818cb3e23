from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from models.training import compose
from models.training.compose import Composer, ended, implanted, odds_of, with_block
from models.training.data import NONE, Cubes, Noise, Piece
from tests.models.training.test_data import ball, even

SIDES = (64, 64, 64)

SIDE = 64

NOISE = Noise(64, 0)


KINDS = ("mosaic", "scan", "planted")


def composer() -> Composer:
    """Cubes with a bright ball in the middle and a scan of lung with one ball."""
    cubes = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0, 16.0)]
    scan = even((120, 130, 140))
    there = ball((120, 130, 140), (70.0, 80.0, 60.0), 12.0)
    voxels = np.maximum(scan.voxels, there.voxels)
    return Composer(cubes, [replace(there, voxels=voxels)], side=SIDE, noise=NOISE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mark_lies_on_something_bright(kind: str) -> None:
    rng = np.random.default_rng(3)
    seen = 0
    for _ in range(6):
        sample = getattr(composer(), kind)(rng)
        assert sample.voxels.shape == sample.mask.shape == SIDES
        for z, y, x, _ in sample.nodules:
            at = tuple(int(np.clip(round(v), 0, SIDE - 1)) for v in (z, y, x))
            near = tuple(slice(max(a - 8, 0), a + 9) for a in at)  # its middle may be a cavity
            assert sample.voxels[near].max() > 110
            assert sample.mask[at] > 127
            seen += 1
    assert seen > 3


def test_rare_nodules_are_drawn_more_often() -> None:
    """Ground glass of 6 mm, a part-solid one of 16 mm, a solid one of 10 mm, one without rating."""
    pieces = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (6.0, 16.0, 10.0, 10.0)]
    cubes = Cubes(tuple(pieces), ("a",) * 4, np.zeros(4), np.array([1.0, 3.0, 5.0, np.nan]))
    odds = odds_of(cubes)
    assert odds.tolist() == [4, 8, 1, 1]
    rng, drawn = np.random.default_rng(0), replace(composer(), cubes=pieces, odds=odds).drawn
    counts = np.bincount([drawn(rng) for _ in range(2000)], minlength=4)
    np.testing.assert_allclose(counts / 2000, odds / odds.sum(), atol=0.05)


def test_nodules_of_mosaics_lie_everywhere() -> None:
    rng = np.random.default_rng(1)
    places = np.concatenate([composer().mosaic(rng).nodules[:, :3] for _ in range(25)])
    assert len(places) > 60
    octant = ((places > SIDE / 2) @ [4, 2, 1]).astype(int)
    assert np.bincount(octant, minlength=8).max() < 0.25 * len(places)


def test_an_implant_goes_into_lung_only() -> None:
    """Air with sheets of tissue, as where skin meets air, is as dark on the whole, and is none."""
    rng = np.random.default_rng(0)
    donor = ball((50, 50, 50), (25, 25, 25), 8.0)
    sheets = even(SIDES, 0)
    sheets.voxels[:, ::4] = 150
    assert 15 < sheets.voxels.mean() < 75
    for no_lung in (even(SIDES, 190), sheets):
        assert len(implanted(no_lung, donor, rng, real=True).nodules) == 0
    part = implanted(even(SIDES), donor, rng, real=True)
    assert len(part.nodules) == 1
    assert part.voxels[tuple(np.rint(part.nodules[0, :3]).astype(int))] > 150


def test_a_piece_of_vessel_is_implanted_without_a_mark() -> None:
    rng = np.random.default_rng(0)
    donor = ball((50, 50, 50), (25, 25, 25), 8.0)
    donor.voxels[30:, 30:, 30:] = 150
    lung = even(SIDES)
    parts = [implanted(lung, donor, rng, real=False) for _ in range(10)]
    assert all(len(part.nodules) == 0 and not part.mask.any() for part in parts)
    assert any((part.voxels != lung.voxels).any() for part in parts)


def test_no_insertion_ends_as_the_cube_that_it_comes_from_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its edge has faded to nothing before a face, with a nodule and without one."""
    donor, lung = ball((40, 40, 40), (20, 20, 20), 12.0), even(SIDES)
    masks = []

    def blended(part: Piece, *given: Any) -> Piece:
        _, mask, _, _, edge = given
        masks.append((mask, int(np.ceil(sum(edge)))))
        return part

    monkeypatch.setattr(compose, "_blend", blended)
    for seed in range(40):
        implanted(lung, donor, np.random.default_rng(seed), real=seed % 4 == 0)
    assert len(masks) > 20
    for mask, margin in masks:
        inner = tuple(slice(margin, n - margin) for n in mask.shape)
        assert mask[inner].sum() == mask.sum() > 0


@pytest.mark.parametrize(("host_noise", "donor_noise"), [(6.0, 1.0), (1.0, 6.0), (3.0, 3.0)])
def test_an_implant_takes_on_the_density_and_the_noise_of_its_host(
    host_noise: float, donor_noise: float
) -> None:
    rng = np.random.default_rng(4)

    def noisy(piece: Piece, sigma: float) -> Piece:
        voxels = piece.voxels + rng.normal(0, sigma, piece.voxels.shape)
        return replace(piece, voxels=np.rint(voxels).clip(0, 255).astype(np.uint8))

    lung = noisy(even(SIDES, 45), host_noise)
    donor = noisy(ball((50, 50, 50), (25, 25, 25), 8.0), donor_noise)
    around = []
    for real in [True, False] * 3:
        part = implanted(lung, donor, rng, real=real)
        changed = (part.voxels != lung.voxels) & (part.voxels < 75)
        around.append(part.voxels[changed & (ndimage.maximum_filter(part.mask, 5) == 0)])
    lung_around = np.concatenate(around)
    assert len(lung_around) > 500
    assert lung_around.mean() == pytest.approx(45, abs=2.5)
    assert lung_around.std() == pytest.approx(host_noise, rel=0.4, abs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_composing_holds_nodules_and_none(kind: str) -> None:
    """So that neither a seam, nor a face, nor an unbroken lung tells the label.

    A mosaic of many tiles has some in nearly every sample, and tiles without.
    """
    rng, source = np.random.default_rng(5), composer()
    octants = []
    for _ in range(12):
        sample = getattr(source, kind)(rng)
        octant = ((sample.nodules[:, :3] > SIDE / 2) @ [4, 2, 1]).astype(int)
        octants.append(np.bincount(octant, minlength=8) > 0)
    share = np.mean(octants)
    assert 0.02 < share < 0.9, share


@pytest.mark.parametrize("kind", ["mosaic", "planted"])
def test_blocks_come_from_cubes_and_from_scans(kind: str) -> None:
    """Whole scans alone, and cubes alone, are distinct in their grey: both are seen."""
    rng = np.random.default_rng(6)
    cube, scan = ball((50, 50, 50), (25, 25, 25), 8.0), even((120, 120, 120), 100)
    seen = np.concatenate(
        [
            getattr(Composer([cube], [scan], side=SIDE, noise=NOISE), kind)(rng).voxels.ravel()
            for _ in range(8)
        ]
    )
    assert (np.abs(seen.astype(int) - 100) < 15).mean() > 0.1
    assert (seen < 40).mean() > 0.05


def test_blocks_of_scans_lie_upside_down_as_often_as_those_of_cubes() -> None:
    """The scan is darker at its head: a symmetry that only cubes had would tell a cube."""
    depth = np.linspace(40, 140, 120).astype(np.uint8)[:, None, None]
    scan = replace(even((120, 120, 120)), voxels=np.repeat(np.repeat(depth, 120, 1), 120, 2))
    cube = ball((50, 50, 50), (25, 25, 25), 8.0)
    composer, rng = Composer([cube], [scan], side=SIDE, noise=NOISE), np.random.default_rng(8)
    blocks = [composer._block(np.array([20, 30, 40]), rng).voxels for _ in range(80)]
    rises = np.array([float(one[-1].mean()) - float(one[0].mean()) for one in blocks])
    assert (rises > 10).sum() > 8
    assert (rises < -10).sum() > 8
    assert {one.shape for one in blocks} == {(20, 30, 40)}


def marked(marks: list[list[float]]) -> Piece:
    lung = even((64, 64, 64))
    return Piece(lung.voxels, lung.mask, np.array(marks, float).reshape(-1, 4), NONE)


def test_a_planted_block_removes_marks_that_it_covers_and_ignores_those_that_it_touches() -> None:
    part = marked([[32, 32, 32, 6], [32, 32, 47, 6], [32, 32, 8, 6]])
    block = even((30, 30, 30), 90)
    planted = with_block(part, block, np.array([17, 17, 17]), feather=1.0)
    assert planted.nodules.tolist() == [[32, 32, 8, 6]]
    assert planted.ignored.tolist() == [[32, 32, 47, 6]]
    assert (planted.voxels[20:44, 20:44, 20:44] == 90).all()
    assert (planted.voxels[:17] == 40).all()
    assert 40 < planted.voxels[17, 32, 32] < 90  # the edge is mixed


def test_a_planted_block_brings_its_own_marks_and_outline() -> None:
    block = ball((30, 30, 30), (15, 14, 16), 8.0)
    planted = with_block(marked([]), block, np.array([10, 20, 30]), feather=2.0)
    assert planted.nodules.tolist() == [[25, 34, 46, 8]]
    np.testing.assert_allclose(np.argwhere(planted.mask > 127).mean(0), [25, 34, 46], atol=0.3)


def test_a_sample_that_ends_in_air_keeps_only_whole_marks() -> None:
    """Marks in the air are gone; those that the end cuts are ignored."""
    rng = np.random.default_rng(2)
    grid = [[float(z), y, x, 8.0] for z in (6, 32, 58) for y in (6, 32, 58) for x in (6, 32, 58)]
    cut = 0
    for _ in range(10):
        sample = ended(marked(grid), rng)
        lung = np.argwhere(sample.voxels == 40)
        low, high = lung.min(0), lung.max(0)
        assert (high - low + 1 >= 48).all()
        air = np.ones_like(sample.voxels, bool)
        air[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = False
        assert not sample.voxels[air].any()
        depth = np.minimum(sample.nodules[:, :3] - low, high - sample.nodules[:, :3]).min(1)
        assert (depth >= 3).all()
        near = np.minimum(sample.ignored[:, :3] - low, high - sample.ignored[:, :3]).min(1)
        assert (near < 3).all()
        assert len(sample.nodules) + len(sample.ignored) <= len(grid)
        cut += len(sample.ignored)
    assert cut > 0
