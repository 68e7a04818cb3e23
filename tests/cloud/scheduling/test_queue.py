"""The order in which what waits is read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from cloud.scheduling.fairness import MAX_LEAD
from cloud.scheduling.queue import Queue, QueueRules
from protos.messages import Priority
from tests.cloud.entries import NOW_S, entry, queued

STAT = Priority.STAT


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the tickets' futures; it never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_the_earliest_deadline_is_read_first(loop: asyncio.AbstractEventLoop) -> None:
    """Order of arrival does not matter, but among equals."""
    queue = Queue()
    late, early, late_too = (queued(loop, at_s) for at_s in (90.0, 60.0, 90.0))
    for one in (late, early, late_too):
        queue.put(one)
    assert queue.take(2, NOW_S) == [early, late]
    assert queue.take(2, NOW_S) == [late_too]


def test_first_come_first_served_knows_no_deadline(loop: asyncio.AbstractEventLoop) -> None:
    """Nor priority, where the rules say so."""
    queue = Queue(QueueRules(by_deadline=False))
    tickets = [queued(loop, 90.0), queued(loop, 60.0), queued(loop, 70.0, STAT)]
    for one in tickets:
        queue.put(one)
    assert queue.take(3, NOW_S) == tickets


def test_stat_is_read_before_routine(loop: asyncio.AbstractEventLoop) -> None:
    """An urgent ROI overtakes a routine one whose deadline is earlier."""
    queue = Queue()
    routine, stat = queued(loop, 60.0), queued(loop, 90.0, STAT)
    queue.put(routine)
    queue.put(stat)
    last, middle = entry(99.0), entry(80.0, STAT)
    assert queue.in_order(NOW_S, [last]) == [stat, routine, last]
    assert queue.in_order(NOW_S, [middle]) == [middle, stat, routine]
    assert queue.in_order(NOW_S) == [stat, routine]


def test_routine_has_every_fourth_place_when_some_is_aged(loop: asyncio.AbstractEventLoop) -> None:
    """However much stat waits: three of it pass at most, and three are sure to."""
    queue = Queue(QueueRules(routine_max_wait_s=5.0))
    stats = [queued(loop, 60.0 + i, STAT) for i in range(9)]
    aged = [queued(loop, 90.0 + i, arrived_s=NOW_S - 6.0) for i in range(3)]
    fresh = queued(loop, 70.0)
    for one in (*aged, fresh, *stats):
        queue.put(one)
    expected = [*stats[:3], fresh, *stats[3:6], aged[0], *stats[6:], *aged[1:]]
    assert queue.in_order(NOW_S) == expected
    one_by_one = [queue.take(1, NOW_S)[0] for _ in expected]
    assert one_by_one == expected


def test_routine_ages_while_it_waits(loop: asyncio.AbstractEventLoop) -> None:
    """Thinking ahead, work of 10 s that came just now is aged at the places read after 5 s."""
    queue = Queue(QueueRules(routine_max_wait_s=5.0))
    stats = [queued(loop, 99.0 + i, STAT) for i in range(9)]
    for one in stats:
        queue.put(one)
    fresh = entry(60.0)
    assert queue.in_order(NOW_S, [fresh], interval_s=1.0).index(fresh) == 5
    assert queue.in_order(NOW_S, [fresh], interval_s=0.1).index(fresh) == 9


def test_half_of_a_short_budget_is_a_long_wait() -> None:
    """What came at 48 s and is due at 52 s is aged at 50 s, though it may wait 5 s."""
    assert entry(52.0, arrived_s=48.0).aged_at_s(5.0) == NOW_S
    assert entry(80.0, arrived_s=48.0).aged_at_s(5.0) == 53.0


def test_routine_is_never_starved_by_stat_without_end(loop: asyncio.AbstractEventLoop) -> None:
    """With stat coming faster than it is read, an aged ROI is read as the fourth."""
    queue = Queue(QueueRules(routine_max_wait_s=1.0))
    routine = queued(loop, 900.0, arrived_s=NOW_S - 2.0)
    queue.put(routine)
    read = []
    for i in range(8):
        queue.put(queued(loop, 51.0 + i / 100, STAT))
        queue.put(queued(loop, 51.0 + i / 100, STAT))
        read += queue.take(1, NOW_S)
    assert read.index(routine) == 3


def test_what_was_given_up_no_longer_waits(loop: asyncio.AbstractEventLoop) -> None:
    """A cancelled ticket is neither counted nor taken."""
    queue = Queue()
    given_up, kept = queued(loop, 60.0), queued(loop, 70.0)
    queue.put(given_up)
    queue.put(kept)
    given_up.result.cancel()
    assert len(queue) == 1
    assert queue.count_by_site() == {"unknown": 1}
    assert queue.take(8, NOW_S) == [kept]


def test_a_site_that_floods_the_queue_does_not_bar_another(loop: asyncio.AbstractEventLoop) -> None:
    """Beside forty ROIs due earlier, another site's are read after eight, then in turn."""
    queue = Queue()
    for i in range(40):
        queue.put(queued(loop, 60.0 + i / 100, site="large"))
    for i in range(4):
        queue.put(queued(loop, 90.0 + i, site="small"))
    order = [one.site for one in queue.take(16, NOW_S)]
    assert order == ["large"] * 8 + ["small", "large"] * 4


def test_everything_that_waits_has_one_place(loop: asyncio.AbstractEventLoop) -> None:
    """Of many sites with stat and routine work, some of it aged: the most urgent of its kind.

    Stat and routine share what a site got, so each finds it changed by the other.
    """
    rng = np.random.default_rng(3)
    for _ in range(20):
        queue = Queue()
        for _ in range(120):
            site, stat = str(rng.integers(6)), rng.random() < 0.4
            priority = STAT if stat else Priority.ROUTINE
            queue.put(queued(loop, NOW_S + rng.uniform(0.5, 6), priority, site=site))
        order = queue.in_order(NOW_S, interval_s=0.05)
        assert sorted(one.number for one in order) == [one.number for one in queue.waiting()]
        got: Counter[str] = Counter()
        left = list(order)
        for one in order:
            alike = [other for other in left if other.priority is one.priority]
            least = min(got[other.site] for other in alike)
            allowed = [other for other in alike if got[other.site] < least + MAX_LEAD]
            assert one is min(allowed, key=lambda other: (other.deadline.at_s, other.number))
            left.remove(one)
            got[one.site] += 1


def test_thinking_ahead_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """An order that is only asked for is the order that is taken, asked for or not."""
    queue = Queue()
    tickets = [queued(loop, 60.0 + i, site=str(i % 3)) for i in range(20)]
    for one in tickets:
        queue.put(one)
    expected = queue.in_order(NOW_S)
    queue.in_order(NOW_S, [entry(55.0, site="other")])
    assert [*queue.take(7, NOW_S), *queue.take(20, NOW_S)] == expected


def test_counting_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """Metrics may count from another thread while a ticket is put: counting drops no ticket."""
    queue = Queue()
    given_up = queued(loop, 60.0)
    queue.put(given_up)
    given_up.result.cancel()
    before = queue._rois
    assert len(queue) == 0
    assert queue._rois is before
