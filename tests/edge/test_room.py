from __future__ import annotations

from dataclasses import replace

import pytest

from edge.estimate import LinkEstimate, Pace
from edge.room import Room

PACE = Pace(round_trip_s=0.1, bytes_per_s=1000.0, down_bytes_per_s=1e9, queue_s=0.0, roi_s=0.0)
LINK = LinkEstimate(middle=PACE, slow=PACE)
"""One second for a thousand bytes, whatever the confidence."""

ROOM = Room(LINK, budget_s=5.0, max_rois=4, confidence=0.9)


@pytest.mark.parametrize(
    ("room", "most"),
    [
        (ROOM, 4),
        (replace(ROOM, budget_s=0.0), 0),
        (replace(ROOM, link=replace(LINK, available=False)), 0),
        (replace(ROOM, link=replace(LINK, probing=True)), 1),
    ],
)
def test_how_many_may_go_at_most(room: Room, most: int) -> None:
    """As many as the cloud takes; one where the link is on trial, none without link or time."""
    assert room.most == most


def test_what_fits_beside_the_others_is_bounded_by_time_and_number() -> None:
    """Time for 4900 bytes: after 2000 there is room for two more of 1000; of four places one."""
    assert ROOM.fits(1, 4890)
    assert not ROOM.fits(1, 4910)
    assert ROOM.beside(1, 2000, offered=9, each_bytes=1000) == 2
    assert ROOM.beside(1, 2000, offered=1, each_bytes=1000) == 1
    assert ROOM.beside(3, 1000, offered=9, each_bytes=100) == 1
    assert ROOM.beside(1, 4800, offered=9, each_bytes=1000) == 0


def test_why_no_more_go_is_said_in_words() -> None:
    """The first limit that binds is named: the link, time, the trial, the number, the bytes."""
    lost = replace(LINK, available=False, reason="Unreachable: refused")
    assert replace(ROOM, link=lost).why_no_more(0) == "Unreachable: refused"
    assert replace(ROOM, budget_s=0.0).why_no_more(0) == "no time left to ask"
    trial = replace(ROOM, link=replace(LINK, probing=True))
    assert trial.why_no_more(1) == "one region finds out whether the cloud is back"
    assert ROOM.why_no_more(4) == "no more than 4 regions of one study are sent"
    assert ROOM.why_no_more(2) == "the link carries 2 regions in the 5.0 s that were left"
