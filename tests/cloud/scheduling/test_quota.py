from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cloud.scheduling.queue import Queue, QueueRules
from cloud.scheduling.quota import StreamQuota, preempt_for_quota, quota_left
from protos.errors import Overloaded
from protos.messages import Priority
from tests.cloud.entries import NOW_S, entry, queued


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the tickets' futures; it never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def queue_of(loop: asyncio.AbstractEventLoop, sites: str, *, by_deadline: bool = True) -> Queue:
    """A queue in which one ROI of each of ``sites``, a letter each, waits."""
    queue = Queue(QueueRules(by_deadline=by_deadline))
    for i, site in enumerate(sites):
        queue.put(queued(loop, 60.0 + i, site=site))
    return queue


def test_a_site_alone_may_fill_the_queue(loop: asyncio.AbstractEventLoop) -> None:
    """Its share binds only while others wait."""
    assert preempt_for_quota(entry(99.0, site="a"), queue_of(loop, "aaa"), 4, NOW_S) == []


def test_a_site_has_its_share_while_others_wait(loop: asyncio.AbstractEventLoop) -> None:
    """Half of four places are two: the third of a site is refused, that of another is not."""
    queue = queue_of(loop, "aab")
    with pytest.raises(Overloaded, match=r"site a has 2 ROIs queued; .* is 2"):
        preempt_for_quota(entry(99.0, site="a"), queue, 4, NOW_S)
    assert preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S) == []


def test_who_filled_the_queue_gives_way_to_another_site(loop: asyncio.AbstractEventLoop) -> None:
    """The last of the site that holds more than its share leaves."""
    queue = queue_of(loop, "aaaa")
    (gone,) = preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)
    assert gone.deadline.at_s == 63.0
    with pytest.raises(Overloaded, match="the queue is full: 4 ROIs"):
        preempt_for_quota(entry(99.0, site="a"), queue, 4, NOW_S)


def test_a_queue_that_is_full_and_shared_is_overloaded(loop: asyncio.AbstractEventLoop) -> None:
    """Where nobody holds too much, nobody leaves."""
    with pytest.raises(Overloaded, match="the queue is full: 4 ROIs"):
        preempt_for_quota(entry(99.0, site="c"), queue_of(loop, "aabb"), 4, NOW_S)


def test_no_stat_leaves_for_routine_work(loop: asyncio.AbstractEventLoop) -> None:
    """Of a site that holds too much the last routine ROI leaves, and where all is stat nothing."""
    queue = Queue()
    kept = [queued(loop, 60.0, Priority.STAT, site="a") for _ in range(3)]
    routine = queued(loop, 55.0, site="a")
    for one in (*kept, routine):
        queue.put(one)
    assert preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S) == [routine]
    queue.remove([routine])
    queue.put(queued(loop, 70.0, Priority.STAT, site="a"))
    with pytest.raises(Overloaded, match="the queue is full: 4 ROIs"):
        preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)


def test_for_stat_the_last_routine_roi_leaves(loop: asyncio.AbstractEventLoop) -> None:
    """In a full queue of one site, and of its own site where that has its share of it."""
    stat = entry(99.0, Priority.STAT, site="a")
    (gone,) = preempt_for_quota(stat, queue_of(loop, "aaaa"), 4, NOW_S)
    assert gone.deadline.at_s == 63.0
    (gone,) = preempt_for_quota(stat, queue_of(loop, "aaab"), 8, NOW_S) or [None]
    assert gone is None
    (gone,) = preempt_for_quota(stat, queue_of(loop, "aaaab"), 8, NOW_S)
    assert (gone.site, gone.deadline.at_s) == ("a", 63.0)


def test_places_are_told_as_far_as_nobody_has_to_leave(loop: asyncio.AbstractEventLoop) -> None:
    """Those that are free, and of a site beside others those of its share."""
    assert quota_left(entry(99.0, site="a"), queue_of(loop, "aaa"), 8) == 5
    assert quota_left(entry(99.0, site="a"), queue_of(loop, "aaab"), 8) == 1
    assert quota_left(entry(99.0, site="c"), queue_of(loop, "aaab"), 8) == 4
    assert quota_left(entry(99.0, site="a"), queue_of(loop, "aaaaaab"), 8) == 0


def test_weights_count_in_shares(loop: asyncio.AbstractEventLoop) -> None:
    """A site of weight 2 holds three of four places by right, where one of weight 1 has two."""
    queue = Queue(QueueRules(site_weights={"a": 2.0}))
    for i in range(4):
        queue.put(queued(loop, 60.0 + i, site="a"))
    with pytest.raises(Overloaded):
        preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)


def test_first_come_first_served_has_no_shares(loop: asyncio.AbstractEventLoop) -> None:
    """Its queue is full or it is not."""
    queue = queue_of(loop, "aaab", by_deadline=False)
    assert preempt_for_quota(entry(99.0, site="a"), queue, 5, NOW_S) == []
    with pytest.raises(Overloaded):
        preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)


def test_beside_others_a_site_has_no_more_than_its_share() -> None:
    """Once half of the places are taken; alone it may have them all, and stat has some more."""
    quota = StreamQuota(20, 0.3)
    with ExitStack() as places:
        for _ in range(10):
            places.enter_context(quota.open_stream("north"))
            quota.check_priority("north", Priority.ROUTINE)
        places.enter_context(quota.open_stream("south"))
        quota.check_priority("south", Priority.ROUTINE)
        with pytest.raises(Overloaded, match=r"site north has 10 open streams; .* is 6"):
            places.enter_context(quota.open_stream("north"))
        for _ in range(5):
            places.enter_context(quota.open_stream("south"))
            quota.check_priority("south", Priority.ROUTINE)
        places.enter_context(quota.open_stream("south"))
        quota.check_priority("south", Priority.STAT)
        with pytest.raises(Overloaded, match="site south has 7 open streams"):
            quota.check_priority("south", Priority.ROUTINE)


def test_a_service_of_one_site_is_all_that_site_s() -> None:
    """Where no edge says whose it is none is kept out by its share."""
    quota = StreamQuota(20, 0.3)
    with ExitStack() as places:
        for _ in range(18):
            places.enter_context(quota.open_stream("unknown"))
            quota.check_priority("unknown", Priority.ROUTINE)
        places.enter_context(quota.open_stream("unknown"))
        quota.check_priority("unknown", Priority.STAT)


def test_all_places_taken_are_told_and_those_left_are_free_again() -> None:
    """Who left holds none, whoever it was."""
    quota = StreamQuota(2, 1.0)
    with ExitStack() as places:
        for _ in range(2):
            places.enter_context(quota.open_stream("north"))
        with pytest.raises(Overloaded, match="2 streams are open, the limit is 2"):
            places.enter_context(quota.open_stream("south"))
    with quota.open_stream("south"), quota.open_stream("south"):
        pass


def test_the_last_tenth_is_for_stat() -> None:
    """Of twenty places the last two are refused to routine, whosever it is."""
    quota = StreamQuota(20, 1.0)
    with ExitStack() as places:
        for _ in range(18):
            places.enter_context(quota.open_stream("north"))
            quota.check_priority("north", Priority.ROUTINE)
        places.enter_context(quota.open_stream("south"))
        quota.check_priority("south", Priority.STAT)
        with pytest.raises(Overloaded, match="18 streams are open, the last 2 are"):
            quota.check_priority("north", Priority.ROUTINE)


def test_a_few_places_are_for_all() -> None:
    """A service for one study takes a routine one."""
    quota = StreamQuota(1, 0.5)
    with quota.open_stream("north"):
        quota.check_priority("north", Priority.ROUTINE)
