from __future__ import annotations

from collections import Counter

import numpy as np

from cloud.scheduling.fairness import MAX_LEAD
from tests.cloud.scheduling.builders import NOW_S, ROUTINE, STAT, entry, queue_of, queued


def test_the_earliest_deadline_is_read_first() -> None:
    """Order of arrival decides only between equal deadlines."""
    late, early, late_too = (queued(at_s) for at_s in (90.0, 60.0, 90.0))
    queue = queue_of(late, early, late_too)
    assert queue.take(2, NOW_S) == [early, late]
    assert queue.take(2, NOW_S) == [late_too]


def test_first_come_first_served_knows_no_deadline() -> None:
    rois = [queued(90.0), queued(60.0), queued(70.0, STAT)]
    assert queue_of(*rois, by_deadline=False).take(3, NOW_S) == rois


def test_stat_is_read_before_routine() -> None:
    routine, stat = queued(60.0), queued(90.0, STAT)
    queue = queue_of(routine, stat)
    last, middle = entry(99.0), entry(80.0, STAT)
    assert queue.in_order(NOW_S, [last]) == [stat, routine, last]
    assert queue.in_order(NOW_S, [middle]) == [middle, stat, routine]
    assert queue.in_order(NOW_S) == [stat, routine]


def test_routine_has_every_fourth_place_when_some_is_aged() -> None:
    """However much stat waits: exactly three stat ROIs pass each aged one."""
    stats = [queued(60.0 + i, STAT) for i in range(9)]
    aged = [queued(90.0 + i, arrived_s=NOW_S - 6.0) for i in range(3)]
    fresh = queued(70.0)
    queue = queue_of(*aged, fresh, *stats, routine_max_wait_s=5.0)
    expected = [*stats[:3], fresh, *stats[3:6], aged[0], *stats[6:], *aged[1:]]
    assert queue.in_order(NOW_S) == expected
    assert [queue.take(1, NOW_S)[0] for _ in expected] == expected


def test_routine_ages_while_it_waits() -> None:
    """A new ROI with a budget of 10 s is aged at the positions that are read after 5 s."""
    queue = queue_of(*(queued(99.0 + i, STAT) for i in range(9)), routine_max_wait_s=5.0)
    fresh = entry(60.0)
    assert queue.in_order(NOW_S, [fresh], interval_s=1.0).index(fresh) == 5
    assert queue.in_order(NOW_S, [fresh], interval_s=0.1).index(fresh) == 9


def test_a_short_budget_ages_at_its_half() -> None:
    """An ROI that arrived at 48 s and is due at 52 s is aged at 50 s, not at 53 s."""
    assert entry(52.0, arrived_s=48.0).aged_at_s(5.0) == NOW_S
    assert entry(80.0, arrived_s=48.0).aged_at_s(5.0) == 53.0


def test_routine_is_never_starved_by_stat_without_end() -> None:
    """With stat arriving faster than it is read, an aged ROI is read fourth."""
    routine = queued(900.0, arrived_s=NOW_S - 2.0)
    queue = queue_of(routine, routine_max_wait_s=1.0)
    read = []
    for i in range(8):
        queue.put(queued(51.0 + i / 100, STAT))
        queue.put(queued(51.0 + i / 100, STAT))
        read += queue.take(1, NOW_S)
    assert read.index(routine) == 3


def test_a_cancelled_roi_no_longer_waits() -> None:
    given_up, kept = queued(60.0), queued(70.0)
    queue = queue_of(given_up, kept)
    given_up.result.cancel()
    assert len(queue) == 1
    assert queue.count_by_site() == {"unknown": 1}
    assert queue.take(8, NOW_S) == [kept]


def test_a_site_that_floods_the_queue_does_not_bar_another() -> None:
    """Beside forty ROIs due earlier, those of another site are read after eight, then in turn."""
    large = [queued(60.0 + i / 100, site="large") for i in range(40)]
    small = [queued(90.0 + i, site="small") for i in range(4)]
    order = [one.site for one in queue_of(*large, *small).take(16, NOW_S)]
    assert order == ["large"] * 8 + ["small", "large"] * 4


def test_the_order_is_that_of_the_rules() -> None:
    """Of many sites with stat and routine work, some of it aged: the most urgent of its kind.

    Stat and routine share what a site got, so each finds it changed by the other.
    """
    rng = np.random.default_rng(3)
    for _ in range(20):
        queue = queue_of()
        for _ in range(120):
            site, stat = str(rng.integers(6)), rng.random() < 0.4
            priority = STAT if stat else ROUTINE
            queue.put(queued(NOW_S + rng.uniform(0.5, 6), priority, site=site))
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


def test_in_order_does_not_change_the_queue() -> None:
    queue = queue_of(*(queued(60.0 + i, site=str(i % 3)) for i in range(20)))
    expected = queue.in_order(NOW_S)
    queue.in_order(NOW_S, [entry(55.0, site="other")])
    assert [*queue.take(7, NOW_S), *queue.take(20, NOW_S)] == expected


def test_counting_does_not_change_the_queue() -> None:
    """Metrics count in another thread while ROIs are put."""
    given_up = queued(60.0)
    queue = queue_of(given_up)
    given_up.result.cancel()
    before = queue._rois
    assert len(queue) == 0
    assert queue._rois is before
