from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cloud.scheduling.queue import Queue
from cloud.scheduling.quota import StreamQuota, preempt_for_quota, quota_left
from protos.errors import Overloaded
from tests.cloud.scheduling.builders import NOW_S, ROUTINE, STAT, entry, queue_of, queued


def of_sites(sites: str, **rules: bool | dict[str, float]) -> Queue:
    """A queue in which one ROI of each of ``sites``, a letter each, waits."""
    return queue_of(*(queued(60.0 + i, site=site) for i, site in enumerate(sites)), **rules)


@pytest.mark.parametrize(
    ("waiting", "site", "most"),
    [
        pytest.param("aaa", "a", 4, id="a site alone may fill the queue"),
        pytest.param("aab", "b", 4, id="beside others a site may have its share"),
    ],
)
def test_a_site_within_its_quota_preempts_none(waiting: str, site: str, most: int) -> None:
    assert preempt_for_quota(entry(99.0, site=site), of_sites(waiting), most, NOW_S) == []


@pytest.mark.parametrize(
    ("waiting", "site", "reason"),
    [
        pytest.param("aab", "a", "a has 2 ROIs queued; .* is 2", id="the third of a site"),
        pytest.param("aaaa", "a", "queue is full: 4 ROIs", id="the site that filled the queue"),
        pytest.param("aabb", "c", "queue is full: 4 ROIs", id="no site holds too much"),
    ],
)
def test_beyond_its_quota_an_roi_is_overloaded(waiting: str, site: str, reason: str) -> None:
    """Of four places a site may hold half while others wait."""
    with pytest.raises(Overloaded, match=reason):
        preempt_for_quota(entry(99.0, site=site), of_sites(waiting), 4, NOW_S)


def test_a_site_that_filled_the_queue_gives_way_to_another() -> None:
    (gone,) = preempt_for_quota(entry(99.0, site="b"), of_sites("aaaa"), 4, NOW_S)
    assert gone.deadline.at_s == 63.0


def test_stat_never_gives_way_to_routine() -> None:
    """A site over its quota loses its last routine ROI, and nothing if all is stat."""
    routine = queued(55.0, site="a")
    queue = queue_of(*(queued(60.0, STAT, site="a") for _ in range(3)), routine)
    assert preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S) == [routine]
    queue.remove([routine])
    queue.put(queued(70.0, STAT, site="a"))
    with pytest.raises(Overloaded, match="4 ROIs wait"):
        preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)


def test_for_stat_the_last_routine_roi_gives_way() -> None:
    """Of any site in a full queue; of its own site if that has used up its quota."""
    stat = entry(99.0, STAT, site="a")
    (gone,) = preempt_for_quota(stat, of_sites("aaaa"), 4, NOW_S)
    assert gone.deadline.at_s == 63.0
    assert preempt_for_quota(stat, of_sites("aaab"), 8, NOW_S) == []
    (gone,) = preempt_for_quota(stat, of_sites("aaaab"), 8, NOW_S)
    assert (gone.site, gone.deadline.at_s) == ("a", 63.0)


@pytest.mark.parametrize(
    ("waiting", "site", "left"),
    [("aaa", "a", 5), ("aaab", "a", 1), ("aaab", "c", 4), ("a" * 6 + "b", "a", 0)],
)
def test_quota_left_counts_places_without_preemption(waiting: str, site: str, left: int) -> None:
    """The free ones of eight places, and beside other sites no more than the quota."""
    assert quota_left(entry(99.0, site=site), of_sites(waiting), 8) == left


def test_weights_count_in_shares() -> None:
    """A site of weight 2 may hold all four places; with weight 1 it would give way."""
    with pytest.raises(Overloaded):
        preempt_for_quota(
            entry(99.0, site="b"), of_sites("aaaa", site_weights={"a": 2.0}), 4, NOW_S
        )


def test_first_come_first_served_has_no_shares() -> None:
    queue = of_sites("aaab", by_deadline=False)
    assert preempt_for_quota(entry(99.0, site="a"), queue, 5, NOW_S) == []
    with pytest.raises(Overloaded):
        preempt_for_quota(entry(99.0, site="b"), queue, 4, NOW_S)


Open = Callable[..., None]


@pytest.fixture
def hold() -> Iterator[Open]:
    """Opens routine streams of a site, none of which may be rejected, and holds them."""
    with ExitStack() as stack:

        def open_(quota: StreamQuota, site: str, count: int = 1) -> None:
            for _ in range(count):
                stack.enter_context(quota.open_stream(site))
                quota.check_priority(site, ROUTINE)

        yield open_


def test_beside_others_a_site_has_no_more_than_its_share(hold: Open) -> None:
    """Once half of all streams are open; stat may exceed the quota."""
    quota = StreamQuota(20, 0.3)
    hold(quota, "north", 10)
    hold(quota, "south")
    with pytest.raises(Overloaded, match=r"north has 10 open streams; .* is 6"):
        hold(quota, "north")
    hold(quota, "south", 5)
    with quota.open_stream("south"):
        quota.check_priority("south", STAT)
        with pytest.raises(Overloaded, match="south has 7 open streams"):
            quota.check_priority("south", ROUTINE)


def test_a_site_alone_may_exceed_its_share(hold: Open) -> None:
    """For example if no edge names its site."""
    quota = StreamQuota(20, 0.3)
    hold(quota, "unknown", 18)
    with quota.open_stream("unknown"):
        quota.check_priority("unknown", STAT)


def test_the_last_tenth_is_for_stat(hold: Open) -> None:
    """Of twenty streams the last two are closed to routine, whatever the site."""
    quota = StreamQuota(20, 1.0)
    hold(quota, "north", 18)
    with quota.open_stream("south"):
        quota.check_priority("south", STAT)
        with pytest.raises(Overloaded, match="18 streams are open, the last 2 are"):
            quota.check_priority("north", ROUTINE)


def test_closed_streams_are_free_again() -> None:
    quota = StreamQuota(2, 1.0)
    with (
        quota.open_stream("north"),
        quota.open_stream("north"),
        pytest.raises(Overloaded, match="2 streams are open, the limit is 2"),
        quota.open_stream("south"),
    ):
        pass
    with quota.open_stream("south"), quota.open_stream("south"):
        pass


def test_a_few_streams_are_for_all(hold: Open) -> None:
    """A service with one stream accepts a routine study."""
    hold(StreamQuota(1, 0.5), "north")
