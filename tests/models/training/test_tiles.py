import numpy as np
import pytest

from models.runtime.detection import Peaks
from models.training.tiles import CORE, TILE, of_tiles, tile_around, tiles

SHAPES = [(50, 50, 50), (51, 86, 87), (120, 200, 333), (30, 49, 61), (16, 16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_place_lies_in_exactly_one_core(shape: tuple[int, int, int]) -> None:
    count = np.zeros(shape, int)
    for place, (low, high) in tiles(shape):
        start = np.array([one.start for one in place])
        core = zip((start + low).astype(int), (start + high).astype(int), strict=True)
        count[tuple(slice(a, b) for a, b in core)] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_are_as_large_as_cubes_and_their_cores_keep_away_from_inner_faces(
    shape: tuple[int, int, int],
) -> None:
    """At the box's own faces a core ends there; a box smaller than a tile is one tile."""
    for place, (low, high) in tiles(shape):
        for span, size, a, b in zip(place, shape, low, high, strict=True):
            assert span.stop - span.start == min(TILE, size)
            assert a >= (TILE - CORE) // 2 or span.start == 0
            assert span.stop - span.start - b >= (TILE - CORE) // 2 or span.stop == size
    if max(shape) <= TILE:
        assert len(list(tiles(shape))) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tile_around_a_place_is_the_one_whose_core_holds_it(
    shape: tuple[int, int, int],
) -> None:
    rng = np.random.default_rng(0)
    places = [rng.uniform(-0.5, np.array(shape) - 0.5) for _ in range(60)]
    for at in [*places, np.array([-2.0, -2, -2]), np.array(shape) + 1.0]:
        found = tile_around(shape, at)
        inside = np.clip(at, -0.5, np.array(shape) - 0.51)
        (core,) = [
            (place, low, high)
            for place, (low, high) in tiles(shape)
            if (inside - [one.start for one in place] >= low - 0.5).all()
            and (inside - [one.start for one in place] < high - 0.5).all()
        ]
        assert found == core[0]


def test_a_peak_that_two_tiles_see_counts_once_where_its_core_is() -> None:
    """Peaks come in the box's voxels, strongest first, and near a tile's inner face none."""
    voxels = np.zeros((50, 50, 122), np.uint8)
    bright = [(25, 25, 30), (25, 25, 60), (25, 25, 90)]
    for level, at in zip((100, 200, 150), bright, strict=True):
        voxels[at] = level

    def read(tile: np.ndarray) -> Peaks:
        at = np.argwhere(tile)
        return Peaks(tile[tuple(at.T)].astype(float), at.astype(float), np.full(len(at), 5.0))

    read_tiles = [read(voxels[place]) for place, _ in tiles(voxels.shape)]
    peaks = of_tiles(voxels.shape, read_tiles, 10)
    assert peaks.index_zyx.tolist() == [[25, 25, 60], [25, 25, 90], [25, 25, 30]]
    assert peaks.logit.tolist() == [200, 150, 100]
    assert len(of_tiles(voxels.shape, read_tiles, 2).logit) == 2
