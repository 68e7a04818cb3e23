import numpy as np
import pytest

from imaging.preprocess import preprocess
from models.insertion.space import FreeSpace, Occupied
from tests.evaluation.plain_chest import LUNG_HU, RADIUS_MM, chest, in_lung


@pytest.fixture(scope="module")
def space() -> FreeSpace:
    return FreeSpace.of(preprocess(chest()))


def test_the_middle_of_a_lung_is_farthest_from_its_wall(space: FreeSpace) -> None:
    """A lung of 80 mm has 40 mm of free lung in its middle."""
    z, y, x = (round(float(v) / 2) for v in space.box.geometry.to_index(in_lung(0)))
    assert space.clear_mm[z, y, x] == pytest.approx(RADIUS_MM, abs=4)
    assert space.clear_mm.max() == pytest.approx(RADIUS_MM, abs=4)


def test_places_lie_in_lung_and_keep_away(space: FreeSpace) -> None:
    """Twenty places are 8 mm from the wall and 25 mm from what is occupied."""
    occupied = (Occupied(in_lung(0), 20.0),)
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = space.find(8.0, 5.0, occupied, rng)
        assert place is not None
        to_lungs = [np.linalg.norm(np.subtract(place, in_lung(side))) for side in (0, 1)]
        assert min(to_lungs) < RADIUS_MM - 5
        assert to_lungs[0] > 25


def test_none_is_found_without_room(space: FreeSpace) -> None:
    rng = np.random.default_rng(0)
    assert space.find(50.0, 50.0, (), rng) is None
    assert space.find(5.0, 5.0, (Occupied(in_lung(0), 300.0),), rng) is None


def test_the_lung_around_a_place_is_measured(space: FreeSpace) -> None:
    """The median of what is aerated, to within the window's rounding."""
    assert space.lung_hu(in_lung(1), 10.0) == pytest.approx(LUNG_HU, abs=6)
