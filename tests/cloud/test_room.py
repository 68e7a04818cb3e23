"""How many studies may be open, and whose."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from cloud.room import Room
from protos.errors import Overloaded
from protos.messages import Priority


def test_beside_others_a_site_has_no_more_than_its_share() -> None:
    """Once half of the places are taken; alone it may have them all, and stat has some more."""
    room = Room(20, 0.3)
    with ExitStack() as places:
        for _ in range(10):
            places.enter_context(room.place("north"))
            room.check("north", Priority.ROUTINE)
        places.enter_context(room.place("south"))
        room.check("south", Priority.ROUTINE)
        with pytest.raises(Overloaded, match="10 studies of north are open, 6 may"):
            places.enter_context(room.place("north"))
        for _ in range(5):
            places.enter_context(room.place("south"))
            room.check("south", Priority.ROUTINE)
        places.enter_context(room.place("south"))
        room.check("south", Priority.STAT)
        with pytest.raises(Overloaded, match="7 studies of south"):
            room.check("south", Priority.ROUTINE)


def test_a_service_of_one_site_is_all_that_site_s() -> None:
    """Where no edge says whose it is none is kept out by its share."""
    room = Room(20, 0.3)
    with ExitStack() as places:
        for _ in range(18):
            places.enter_context(room.place("unknown"))
            room.check("unknown", Priority.ROUTINE)
        places.enter_context(room.place("unknown"))
        room.check("unknown", Priority.STAT)


def test_all_places_taken_are_told_and_those_left_are_free_again() -> None:
    """Who left holds none, whoever it was."""
    room = Room(2, 1.0)
    with ExitStack() as places:
        for _ in range(2):
            places.enter_context(room.place("north"))
        with pytest.raises(Overloaded, match="2 studies are open, and no more may be"):
            places.enter_context(room.place("south"))
    with room.place("south"), room.place("south"):
        pass


def test_the_last_tenth_is_for_stat() -> None:
    """Of twenty places the last two are refused to routine, whosever it is."""
    room = Room(20, 1.0)
    with ExitStack() as places:
        for _ in range(18):
            places.enter_context(room.place("north"))
            room.check("north", Priority.ROUTINE)
        places.enter_context(room.place("south"))
        room.check("south", Priority.STAT)
        with pytest.raises(Overloaded, match="18 studies are open, the last 2 places are for stat"):
            room.check("north", Priority.ROUTINE)


def test_a_few_places_are_for_all() -> None:
    """A service for one study takes a routine one."""
    room = Room(1, 0.5)
    with room.place("north"):
        room.check("north", Priority.ROUTINE)
