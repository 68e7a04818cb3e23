"""How many studies may be open, and whose."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from cloud.room import Room
from protos.errors import Overloaded
from protos.messages import Priority


def test_a_site_may_fill_half_and_no_more_than_its_share_after_that() -> None:
    """Alone it gets half of the places though its share is less, then others get theirs."""
    room = Room(10, 0.3)
    with ExitStack() as places:
        for _ in range(5):
            places.enter_context(room.place("north"))
        with pytest.raises(Overloaded, match="5 studies of north are open, 3 may be of 5"):
            places.enter_context(room.place("north"))
        for _ in range(3):
            places.enter_context(room.place("south"))
        with pytest.raises(Overloaded, match="south"):
            places.enter_context(room.place("south"))
        places.enter_context(room.place("east"))


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
            room.check_priority(Priority.ROUTINE)
        places.enter_context(room.place("south"))
        room.check_priority(Priority.STAT)
        with pytest.raises(Overloaded, match="18 studies are open, the last 2 places are for stat"):
            room.check_priority(Priority.ROUTINE)


def test_a_few_places_are_for_all() -> None:
    """A service for one study takes a routine one."""
    room = Room(1, 0.5)
    with room.place("north"):
        room.check_priority(Priority.ROUTINE)
