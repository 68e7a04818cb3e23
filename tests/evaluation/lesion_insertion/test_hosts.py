"""Room in a lung: distances to the wall, and places that keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.lesion_insertion.hosts import Room, Taken
from imaging.preprocess import preprocess
from tests.evaluation.plain_chest import LUNG_HU, RADIUS_MM, chest, in_lung


@pytest.fixture(scope="module")
def room() -> Room:
    """The room in the plain chest."""
    return Room.of(preprocess(chest()))


def test_the_middle_of_a_lung_is_farthest_from_its_wall(room: Room) -> None:
    """A lung of 80 mm has 40 mm of room in its middle."""
    z, y, x = (round(float(v) / 2) for v in room.box.geometry.to_index(in_lung(0)))
    assert room.clear_mm[z, y, x] == pytest.approx(RADIUS_MM, abs=4)
    assert room.clear_mm.max() == pytest.approx(RADIUS_MM, abs=4)


def test_places_lie_in_lung_and_keep_away(room: Room) -> None:
    """Twenty places are 8 mm from the wall and 25 mm from what is taken."""
    taken = (Taken(in_lung(0), 20.0),)
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = room.place(8.0, 5.0, taken, rng)
        assert place is not None
        to_lungs = [np.linalg.norm(np.subtract(place, in_lung(side))) for side in (0, 1)]
        assert min(to_lungs) < RADIUS_MM - 5
        assert to_lungs[0] > 25


def test_no_room_is_said(room: Room) -> None:
    """A mass larger than the lung has no place, nor has anything where all is taken."""
    rng = np.random.default_rng(0)
    assert room.place(50.0, 50.0, (), rng) is None
    assert room.place(5.0, 5.0, (Taken(in_lung(0), 300.0),), rng) is None


def test_the_same_seed_gives_the_same_place(room: Room) -> None:
    """Everything random follows from the generator."""
    first, second = (room.place(8.0, 5.0, (), np.random.default_rng(3)) for _ in range(2))
    assert first == second


def test_the_lung_around_a_place_is_measured(room: Room) -> None:
    """The median of what is aerated, to within the window's rounding."""
    assert room.lung_hu(in_lung(1), 10.0) == pytest.approx(LUNG_HU, abs=6)
