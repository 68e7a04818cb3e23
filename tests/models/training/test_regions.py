from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from models.training.augment import Noise
from models.training.compose import Composer
from models.training.data import Cubes, Piece, away_from_marks
from models.training.regions import Region, RegionDrawer, as_sample, rated
from tests.models.training.test_data import ball, even

SIDE = 48

NOISE = Noise(64, 0)


class BrightHeat(nn.Module):
    """A screening network whose candidates are what is bright, each of 6 mm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 40.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, 5, z/4, y/4, x/4)``."""
        heat = (nn.functional.avg_pool3d(x, 4) - 0.4) * self.weight
        flat = torch.zeros_like(heat).expand(-1, 3, -1, -1, -1)
        return torch.cat([heat, flat, torch.full_like(heat, float(np.log(6)))], 1)


def lung() -> Piece:
    """A plain lung with bright lumps that are no nodules."""
    piece = even((100, 110, 120))
    for z, y, x in ((20, 30, 40), (60, 70, 80), (80, 30, 90), (40, 90, 20)):
        piece.voxels[z : z + 6, y : y + 6, x : x + 6] = 220
    return piece


def drawer(
    share: float = 0.2, scans: Sequence[Piece] | None = None, screener: nn.Module | None = None
) -> RegionDrawer:
    """Cubes with a ball of 8 or 12 mm in the middle, and a lung with lumps."""
    cubes = [ball((50, 50, 50), (24.6, 25.2, 24.9), d) for d in (8.0, 12.0)]
    ratings = (np.array([0.25, np.nan]), np.array([2, -1]))
    composer = Composer(cubes, [lung()] if scans is None else scans, side=64, noise=NOISE)
    return RegionDrawer(composer, ratings, [screener or BrightHeat()], NOISE, SIDE, share)


def of_samples(seed: int, samples: int) -> list[list[Region]]:
    rng, source = np.random.default_rng(seed), drawer()
    return [source.of_sample(rng) for _ in range(samples)]


@pytest.fixture(scope="module")
def samples() -> list[list[Region]]:
    return of_samples(0, 45)


def of_cubes(seed: int, count: int) -> list[Region]:
    rng, stream = np.random.default_rng(seed), drawer(share=1.0)
    found: list[Region] = []
    for region in stream.stream(rng):
        found += [region] if region.outlined else []
        if len(found) == count:
            break
    return found


def test_regions_with_and_without_a_nodule_come_from_the_same_samples(
    samples: list[list[Region]],
) -> None:
    """From most samples come both, as many of each; none has one kind in plenty."""
    counts = [
        (sum(r.nodule == 1 for r in regions), sum(r.nodule == 0 for r in regions))
        for regions in samples
    ]
    both = [pair for pair in counts if min(pair) > 0]
    assert len(both) > len(counts) / 4
    assert all(hits == others for hits, others in both)
    assert all(sum(pair) <= 1 for pair in counts if min(pair) == 0)
    for regions in samples:
        for region in regions:
            assert region.voxels.shape == region.mask.shape == (SIDE,) * 3
            assert region.voxels.dtype == region.mask.dtype == np.uint8
            assert region.voxels.flags.c_contiguous
            assert not region.outlined
            assert (region.diameter_mm > 0) == (region.nodule == 1)


def test_a_neighbouring_nodule_is_frequent_with_a_nodule_and_without(
    samples: list[list[Region]],
) -> None:
    """So "a nodule elsewhere in view" does not tell what lies in the middle."""
    seen: dict[float, list[bool]] = {0.0: [], 1.0: []}
    away = np.linalg.norm(np.indices((SIDE,) * 3) - 23.5, axis=0)
    for regions in samples:
        for region in regions:
            elsewhere = away > max(14.0, region.diameter_mm / 2 + 6)
            seen[region.nodule].append(bool((region.mask[elsewhere] > 127).any()))
    shares = {label: float(np.mean(values)) for label, values in seen.items()}
    assert min(map(len, seen.values())) > 15
    assert min(shares.values()) > 0.2, shares


def test_what_is_no_nodule_surrounds_a_candidate_that_lies_on_none(
    samples: list[list[Region]],
) -> None:
    for regions in samples:
        for region in (r for r in regions if r.nodule == 0):
            middle = (slice(22, 26),) * 3
            assert (region.mask[middle] > 127).mean() < 0.5
            assert region.malignancy != region.malignancy
            assert region.texture == -1


def test_a_region_of_a_cube_teaches_ratings_and_outline_and_not_the_label() -> None:
    """Its surroundings end 25 mm from the nodule: they would tell."""
    regions = of_cubes(3, 24)
    assert all(np.isnan(region.nodule) for region in regions)
    assert {region.texture for region in regions} == {2, -1}
    known = [region for region in regions if np.isfinite(region.malignancy)]
    assert known
    assert all(region.malignancy == 0.25 for region in known)
    assert all(abs(np.log(region.diameter_mm / 8)) < 0.3 for region in known)


def test_the_outlined_nodule_lies_near_the_middle_with_its_size() -> None:
    sizes = []
    for region in of_cubes(4, 16):
        inside = np.argwhere(region.mask > 127)
        assert np.linalg.norm(inside - (SIDE - 1) / 2, axis=1).min() < 3
        sizes.append((6 / np.pi * len(inside)) ** (1 / 3) / region.diameter_mm)
    # of some there is a mirror image too, or a part is cut off
    assert np.median(sizes) == pytest.approx(1.0, abs=0.1)


def test_a_region_becomes_what_the_loss_takes() -> None:
    """Without a nodule there is no size; what is not known is NaN, -1 or of weight 0."""
    blank = np.zeros((SIDE,) * 3, np.uint8)
    none = as_sample(Region(blank, blank, 0.0))
    assert none["nodule"] == 0
    assert none["sized"] == none["outlined"] == 0
    assert torch.isnan(none["malignancy"])
    cube = as_sample(Region(blank, blank + 255, float("nan"), 10.0, 0.5, 1, outlined=True))
    assert torch.isnan(cube["nodule"])
    assert cube["sized"] == cube["outlined"] == 1
    assert float(cube["log_diameter"]) == pytest.approx(np.log(10))
    assert cube["mask"].shape == (1, SIDE, SIDE, SIDE)
    assert float(cube["mask"].max()) == 1.0


def test_the_readers_means_become_targets() -> None:
    """Malignancy from 1.5 to 4.5 becomes 0 to 1; texture one of three classes."""
    cubes = Cubes((), (), np.array([1.0, 3.0, 5.0, np.nan]), np.array([1.0, 3.0, 5.0, np.nan]))
    malignancy, texture = rated(cubes)
    np.testing.assert_array_equal(malignancy, [0, 0.5, 1, np.nan])
    np.testing.assert_array_equal(texture, [0, 1, 2, -1])


def test_the_seed_decides() -> None:
    first, again, other = (list(chain(*of_samples(seed, 3))) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.voxels, b.voxels)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.diameter_mm == b.diameter_mm
    assert any((a.voxels != b.voxels).any() for a, b in zip(first, other, strict=False))


def test_locations_at_annotations_are_no_false_positives() -> None:
    """Neither at a nodule nor at an ignored mark, and only from 4 mm beyond their rim on."""
    voxels = np.zeros((8, 8, 8), np.uint8)
    piece = Piece(voxels, voxels, np.array([[20.0, 20, 20, 10]]), np.array([[60.0, 60, 60, 6]]))
    places = np.array([[20.0, 20, 28.5], [20, 20, 29.5], [60, 60, 66.5], [60, 60, 67.5]])
    np.testing.assert_array_equal(away_from_marks(places, piece, 4), [False, True, False, True])
