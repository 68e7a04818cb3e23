"""What is read together, when it is answered, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from cloud.scheduling.cost import CostModel
from cloud.scheduling.planner import Pace, Slot, admit, admitted, foresee, together
from cloud.scheduling.queue import Queue, Rules
from protos.errors import DeadlineUnmeetable
from protos.messages import Priority
from tests.cloud.claims import claim, ticket

STAT = Priority.STAT


def pace(fixed_s: float = 2.0, each_s: float = 1.0, entrance: float = 1.0, most: int = 4) -> Pace:
    """A batch takes a fixed time and one for each; its entrance is free after a part of that."""
    answer, until_free = CostModel(), CostModel()
    for n in (1, 8):
        answer.observe(n, fixed_s + n * each_s)
        until_free.observe(n, entrance * (fixed_s + n * each_s))
    return Pace(answer, until_free, most)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the tickets' futures; it never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def queue_of(loop: asyncio.AbstractEventLoop, *due_s: float, site: str = "a") -> Queue:
    """Routine work of one site, due at these times."""
    queue = Queue(Rules(routine_wait_s=100.0))
    for at_s in due_s:
        queue.put(ticket(loop, at_s, site=site))
    return queue


def test_nobody_is_late_for_company() -> None:
    """From 50 s on a batch of n is answered at 52 + n: with one due at 55, no more than three."""
    due = [claim(at_s) for at_s in (55.0, 80.0, 80.0, 80.0)]
    assert together(due, 50.0, pace()) == 3
    assert together(due, 49.0, pace()) == 4
    assert together([due[1], due[0], *due[2:]], 52.5, pace()) == 1


def test_company_that_saves_nothing_is_not_sought() -> None:
    """Where a batch has no cost of its own, ROIs are read one by one and answered earlier."""
    due = [claim(80.0) for _ in range(4)]
    assert together(due, 50.0, pace(fixed_s=0.0)) == 1
    assert together(due, 50.0, pace(fixed_s=0.2)) == 2


def test_batches_follow_each_other() -> None:
    """Six ROIs in batches of four and two: 6 s, and 4 s after that."""
    slots = foresee([claim(90.0) for _ in range(6)], 50.0, pace())
    np.testing.assert_allclose(slots, [(50.0, 56.0)] * 4 + [(56.0, 60.0)] * 2)


def test_a_pipeline_takes_the_next_batch_before_it_has_answered() -> None:
    """Where the entrance is free after a third of the time, batches overlap."""
    slots = foresee([claim(90.0) for _ in range(8)], 50.0, pace(entrance=1 / 3))
    np.testing.assert_allclose(slots, [(50.0, 56.0)] * 4 + [(52.0, 58.0)] * 4)


def test_what_will_not_be_read_delays_nobody() -> None:
    """One that cannot be met even alone is dropped when its turn comes."""
    slots = foresee([claim(51.0), claim(90.0)], 50.0, pace())
    assert slots == [Slot(50.0, 53.0), Slot(50.0, 53.0)]


def test_what_would_be_late_is_refused_with_its_own_estimate(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Behind four of 6 s an answer comes after 9 s; before them, after 3 s."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match=r"9\.000 s, 7\.000 s are left") as caught:
        admit(claim(57.0, site="a"), queue, 50.0, pace())
    assert caught.value.estimate_s == pytest.approx(9.0)
    assert admit(claim(59.5, site="a"), queue, 50.0, pace()) == []


def test_nobody_let_in_is_made_late_by_one_who_comes_after(loop: asyncio.AbstractEventLoop) -> None:
    """An ROI due earlier would be in time, but the others would not: it is refused."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match="others would be late") as caught:
        admit(claim(55.5, site="a"), queue, 50.0, pace())
    assert caught.value.estimate_s is not None
    assert caught.value.estimate_s > 5.5


def test_stat_may_push_routine_and_routine_not_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Who has to go for an urgent ROI is named; for a routine one nobody urgent is."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    pushed = admit(claim(80.0, STAT, site="a"), queue, 50.0, pace())
    assert [takes_s for _, takes_s in pushed] == pytest.approx([9.0])
    urgent = queue_of(loop)
    for _ in range(4):
        urgent.put(ticket(loop, 56.0, STAT, site="a"))
    with pytest.raises(DeadlineUnmeetable):
        admit(claim(55.5, site="a"), urgent, 50.0, pace())


def test_a_small_site_may_push_what_a_large_one_has_too_much(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Else who floods the queue up to its deadlines would keep all others out."""
    queue = queue_of(loop, *[68.0] * 12)
    pushed = admit(claim(55.5, site="b"), queue, 50.0, pace())
    assert [claim.site for claim, _ in pushed] == ["a", "a"]


def test_sites_that_hold_about_as_much_push_nobody(loop: asyncio.AbstractEventLoop) -> None:
    """What was let in has been sent: another site's few do not make it in vain."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    with pytest.raises(DeadlineUnmeetable, match="others would be late"):
        admit(claim(55.5, site="b"), queue, 50.0, pace())


def test_a_study_is_told_how_much_of_it_can_be_met(loop: asyncio.AbstractEventLoop) -> None:
    """Behind four of 6 s come four more by 62 s: of six due then four, of six due at 60 s two."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    for due_s, expected in ((62.0, 4), (60.0, 2), (57.0, 0), (90.0, 6)):
        six = [claim(due_s, site="a") for _ in range(6)]
        assert admitted(six, queue, 50.0, pace()) == expected


def test_a_study_is_told_places_that_it_may_take(loop: asyncio.AbstractEventLoop) -> None:
    """Urgent ROIs may push routine ones, so all six are let in; routine ones would push nobody."""
    queue = queue_of(loop, 56.0, 56.0, 56.0, 56.0)
    six = [claim(90.0, STAT, site="a") for _ in range(6)]
    assert admitted(six, queue, 50.0, pace()) == 6
    assert admitted([claim(55.0, site="a") for _ in range(6)], queue, 50.0, pace()) == 0


def test_no_more_is_told_to_stay_away_than_has_to(loop: asyncio.AbstractEventLoop) -> None:
    """Seven ROIs due first leave those behind them in time, an eighth would not."""
    queue = queue_of(loop, 63.0)
    first = [claim(62.5, site="a") for _ in range(8)]
    assert admitted(first, queue, 50.0, pace()) == 7


def test_routine_is_let_in_beside_stat_without_end(loop: asyncio.AbstractEventLoop) -> None:
    """Behind 40 s of stat a routine ROI of 20 s has its place when it is aged, and keeps it."""
    queue = Queue(Rules(routine_wait_s=5.0))
    for i in range(26):
        queue.put(ticket(loop, 99.0 + i, STAT, site="a"))
    routine = ticket(loop, 70.0, site="b")
    assert admit(routine, queue, 50.0, pace()) == []
    queue.put(routine)
    assert admit(claim(150.0, STAT, site="a"), queue, 50.0, pace()) == []


def test_routine_without_its_places_may_push_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Where stat fills the time up to its deadlines one goes for the first routine ROI."""
    queue = Queue()
    for _ in range(12):
        queue.put(ticket(loop, 68.0, STAT, site="a"))
    pushed = admit(claim(63.0, site="b"), queue, 50.0, pace())
    assert [one.priority for one, _ in pushed] == [STAT]


def test_routine_with_its_places_pushes_no_stat(loop: asyncio.AbstractEventLoop) -> None:
    """Where a fourth of what waits is routine already one more is refused."""
    queue = Queue()
    for _ in range(9):
        queue.put(ticket(loop, 68.0, STAT, site="a"))
    for _ in range(3):
        queue.put(ticket(loop, 68.0, site="b"))
    with pytest.raises(DeadlineUnmeetable):
        admit(claim(63.0, site="b"), queue, 50.0, pace())
