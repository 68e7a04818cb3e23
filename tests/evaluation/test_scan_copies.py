"""Copies of scans: who is implanted, how often, how large, how far apart."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.scan_copies import APART_MM, MASS_MM, Ready, masses, plan_masses, plan_nodules
from evaluation.scan_donor import Donor, cut_donor
from evaluation.scan_room import Room, Taken
from imaging.preprocess import preprocess
from tests.evaluation.plain_chest import host, in_lung, nodule


@pytest.fixture(scope="module")
def ready() -> Ready:
    """The plain chest, with a place taken in its right lung."""
    chest = host()
    return Ready(chest, Room.of(preprocess(chest.volume)), (Taken(in_lung(0), 10.0),))


def donors(*diameters_mm: float) -> list[Donor]:
    """Balls of these diameters."""
    found = [cut_donor(*nodule(d, f"test/{i}")) for i, d in enumerate(diameters_mm)]
    return [donor for donor in found if donor is not None]


def test_every_nodule_is_implanted_once(ready: Ready) -> None:
    """Seven nodules make three copies of three at most, each apart from the others."""
    copies, left = plan_nodules([ready], donors(*[6.0] * 7), 3, np.random.default_rng(0))
    assert not left
    assert [len(copy.implants) for copy in copies] == [3, 3, 1]
    assert sorted(one.donor_id for copy in copies for one in copy.implants) == list(range(7))
    for copy in copies:
        places = [np.array(one.centre_mm) for one in copy.implants]
        for number, place in enumerate(places):
            assert np.linalg.norm(place - in_lung(0)) > 13
            others = places[:number] + places[number + 1 :]
            assert all(np.linalg.norm(place - other) > APART_MM + 6 for other in others)


def test_masses_are_scaled_up_and_never_down() -> None:
    """Nodules of 15 mm and more become 30 to 60 mm; small ones and shrinking are left out."""
    found = masses(donors(10.0, 20.0))
    assert [one.donor_id for one in found] == [1] * len(MASS_MM)
    assert [one.diameter_mm for one in found] == pytest.approx(list(MASS_MM))


def test_a_mass_without_room_is_left(ready: Ready) -> None:
    """What fits into no lung is named, not forgotten; a copy holds one mass."""
    copies, left = plan_masses([ready], donors(20.0), np.random.default_rng(0))
    assert len(copies) + len(left) == len(MASS_MM)
    assert copies
    assert all(len(copy.implants) == 1 and copy.masses for copy in copies)


def test_the_same_seed_gives_the_same_copies(ready: Ready) -> None:
    """Places follow from the seed alone."""
    plans = [
        plan_nodules([ready], donors(6.0, 8.0), 2, np.random.default_rng(5))[0] for _ in range(2)
    ]
    places = [[one.centre_mm for copy in plan for one in copy.implants] for plan in plans]
    assert places[0] == places[1]
