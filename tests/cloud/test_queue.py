"""The order in which what waits is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from cloud.queue import Queue, Ticket, standing
from protos.deadline import Deadline
from protos.messages import Priority


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the tickets' futures; it never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def ticket(
    loop: asyncio.AbstractEventLoop, at_s: float, priority: Priority = Priority.ROUTINE
) -> Ticket:
    """A ticket due at ``at_s`` on a clock that stands at 50 s."""
    voxels = np.zeros((1, 1, 1), np.uint8)
    return Ticket(voxels, Deadline(at_s, lambda: 50.0), priority, 0.0, loop.create_future())


def test_the_earliest_deadline_is_read_first(loop: asyncio.AbstractEventLoop) -> None:
    """Order of arrival does not matter, but among equals."""
    queue = Queue()
    late, early, late_too = (ticket(loop, at_s) for at_s in (90.0, 60.0, 90.0))
    for one in (late, early, late_too):
        queue.put(one)
    assert queue.take(2) == [early, late]
    assert queue.take(2) == [late_too]


def test_stat_is_read_before_routine(loop: asyncio.AbstractEventLoop) -> None:
    """An urgent ROI overtakes a routine one whose deadline is earlier."""
    queue = Queue()
    routine, stat = ticket(loop, 60.0), ticket(loop, 90.0, Priority.STAT)
    queue.put(routine)
    queue.put(stat)
    assert queue.first() is stat
    assert queue.ahead_of(standing(Priority.ROUTINE, Deadline(60.0))) == 2
    assert queue.ahead_of(standing(Priority.STAT, Deadline(80.0))) == 0


def test_what_was_given_up_no_longer_waits(loop: asyncio.AbstractEventLoop) -> None:
    """A cancelled ticket is neither counted nor taken."""
    queue = Queue()
    given_up, kept = ticket(loop, 60.0), ticket(loop, 70.0)
    queue.put(given_up)
    queue.put(kept)
    given_up.answer.cancel()
    assert len(queue) == 1
    assert queue.take(8) == [kept]


def test_what_ran_out_of_time_is_set_apart(loop: asyncio.AbstractEventLoop) -> None:
    """At 50 s on the clock, deadlines of 40 s have passed and those of 60 s have not."""
    queue = Queue()
    passed, alive = ticket(loop, 40.0), ticket(loop, 60.0)
    queue.put(passed)
    queue.put(alive)
    assert queue.take_expired() == [passed]
    assert queue.take(8) == [alive]


def test_counting_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """Metrics may count from another thread while a ticket is put: counting drops no ticket."""
    queue = Queue()
    given_up = ticket(loop, 60.0)
    queue.put(given_up)
    given_up.answer.cancel()
    before = queue._tickets
    assert len(queue) == 0
    assert queue._tickets is before
