"""Order, admission and shares of the waiting ROIs."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from cloud.scheduling.arrivals import ACTIVE_S, TURN, Rules
from cloud.scheduling.scheduler import Scheduler
from cloud.scheduling.waiting import WaitingRoi
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable, Overloaded
from protos.messages import Priority
from tests.cloud.scheduling.builders import NOW_S, ROUTINE, STAT, Day, due, scheduler_of, timing


def order(scheduler: Scheduler, each_s: float = 0.0) -> list[WaitingRoi]:
    """All that wait, in reading order from 50 s."""
    return scheduler.order(scheduler._queues, NOW_S, each_s)


def sites(text: str, at_s: float = 90.0) -> list[WaitingRoi]:
    """An ROI for each letter, which is its site."""
    return [due(at_s + i / 100, site=site) for i, site in enumerate(text)]


# the order


def test_routine_has_every_fourth_place_when_some_is_aged() -> None:
    """However much stat waits: exactly three stat ROIs pass each aged one."""
    stats = [due(160.0 + i, STAT) for i in range(9)]
    aged = [due(190.0 + i, arrived_s=NOW_S - 6.0) for i in range(3)]
    fresh = due(170.0)
    scheduler = scheduler_of(*aged, fresh, *stats)
    expected = [*stats[:3], fresh, *stats[3:6], aged[0], *stats[6:], *aged[1:]]
    assert order(scheduler) == expected
    read: list[WaitingRoi] = []
    while batch := scheduler.take():
        read += batch
    assert read == expected


@pytest.mark.parametrize(("budget_s", "each_s", "place"), [(10.0, 0.2, 5), (1.0, 0.1, 5)])
def test_routine_ages_while_it_waits(budget_s: float, each_s: float, place: int) -> None:
    """A new ROI is aged at the places that are read after 1 s, or after half of its budget."""
    fresh = due(NOW_S + budget_s)
    stats = [due(99.0 + i, STAT) for i in range(9)]
    scheduler = scheduler_of(*stats, fresh)
    assert order(scheduler, each_s).index(fresh) == place
    assert order(scheduler, each_s / 10).index(fresh) == 9


def test_no_site_is_more_than_four_turns_ahead_of_another_that_waits() -> None:
    """Many sites, weights and deadlines, with ROIs that arrive while others are read."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        weights = {site: float(rng.choice([0.5, 1.0, 2.0])) for site in "abcdef"}
        scheduler = scheduler_of(site_weights=weights, max_queued=999)
        # served while both wait, for each pair of sites
        ahead: Counter[tuple[str, str]] = Counter()
        for _ in range(60):
            for _ in range(rng.integers(8)):
                site = str(rng.choice(list("abcdef"), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
                scheduler.put([due(NOW_S + rng.uniform(60, 90), site=site)])
            waits = {one.site for one in scheduler.waiting}
            ahead = Counter({pair: n for pair, n in ahead.items() if waits >= set(pair)})
            for roi in scheduler.take():
                for other in waits - {roi.site}:
                    ahead[roi.site, other] += 1.0 / weights[roi.site]  # type: ignore[assignment]
                    ahead[other, roi.site] -= 1.0 / weights[roi.site]  # type: ignore[assignment]
            # their places differ by less than two turns at the beginning, and now
            assert max(ahead.values(), default=0.0) <= 4 * TURN


def test_in_a_turn_the_earliest_deadline_is_first() -> None:
    rng = np.random.default_rng(4)
    rois = [due(rng.uniform(60, 90), site=str(rng.integers(5))) for _ in range(100)]
    had, due_s = Counter[str](), defaultdict[float, list[float]](list)
    for one in order(scheduler_of(*rois)):
        due_s[had[one.site] // TURN].append(one.deadline.at_s)
        had[one.site] += 1
    assert list(due_s) == sorted(due_s)
    assert list(due_s.values()) == [sorted(turn) for turn in due_s.values()]


def test_idle_time_earns_no_credit() -> None:
    """A site that comes late starts with the turn that is read now, not with the first."""
    scheduler = scheduler_of(*sites("b" * 60))
    while len(scheduler) > 12:
        scheduler.take()
    late = sites("c" * 40)
    for one in late:
        scheduler.put([one])
    read = order(scheduler)
    assert max(read.index(one) for one in read if one.site == "b") <= 12 + 2 * TURN


def test_a_batch_makes_none_of_its_rois_late() -> None:
    """From 50 s on a batch of n is answered at 52 + n: with one due at 55, no more than three."""
    rois = [due(at_s) for at_s in (55.0, 80.0, 80.0, 80.0)]
    assert scheduler_of(*rois).take() == rois[:3]


# admission: a batch of n takes n + 2 seconds, of at most four


def test_routine_may_not_preempt_stat() -> None:
    urgent = scheduler_of(*(due(56.0, STAT, site="a") for _ in range(4)))
    with pytest.raises(DeadlineUnmeetable):
        urgent.admit([due(55.5, site="a")])


def test_routine_is_admitted_under_endless_stat() -> None:
    """Behind 40 s of stat a routine ROI of 20 s has its place when it is aged, and keeps it."""
    stats = [due(99.0 + i, STAT, site="a") for i in range(26)]
    scheduler = scheduler_of(*stats)
    newcomer = due(70.0, site="b")
    scheduler.admit([newcomer])
    scheduler.put([newcomer])
    scheduler.admit([due(300.0, STAT, site="a")])


@pytest.mark.parametrize(("stat_first", "stats", "routines"), [(True, 36, 12), (False, 36, 30)])
def test_each_priority_is_admitted_beside_the_other(
    stat_first: bool, stats: int, routines: int
) -> None:
    """Routine has one of four places beside stat; stat has all but these, and routine gives way."""
    day, order = Day(), (STAT, ROUTINE) if stat_first else (ROUTINE, STAT)
    assert not day.arrive(order[1], 1.0, "a")  # so that it is known
    for sites_of, priority in zip(("bcdef", "ghijk"), order, strict=True):
        for site in sites_of * 30:
            day.arrive(priority, 100.0, site)
    admitted = sum(one.is_stat for one in day.admitted)
    assert admitted >= stats
    assert len(day.admitted) - admitted >= routines
    day.run_until(math.inf)
    assert day.late == 0
    assert all(one.result is None or not one.result.done() for one in day.admitted if one.is_stat)


def test_stat_is_admitted_however_much_routine_waits_and_that_learns_it_at_once() -> None:
    """Five routine ROIs are due at the end of their two batches; the last gives way, not the rest.

    A place that is kept for stat makes none give way: that must have come.
    """
    rois = [due(59.0, site="a") for _ in range(5)]
    scheduler = scheduler_of(*rois)
    stat = due(58.0, STAT, site="b")
    here, stat.result = stat.result, None
    assert scheduler.admit([stat]) == 1
    scheduler.put([stat])
    assert scheduler.take() == rois[:4]
    assert rois[4].waits
    scheduler = scheduler_of(*rois)
    stat.has_place, stat.result = False, here
    scheduler.admit([stat])
    scheduler.put([stat])
    assert scheduler.take() == [stat, *rois[:3]]
    gone = [one for one in rois if not one.waits]
    assert gone
    for roi in gone:
        assert roi.result is not None
        with pytest.raises(DeadlineUnmeetable, match="stat came first; an answer would take"):
            roi.result.result()


def test_routine_is_refused_for_stat_that_is_expected_at_its_rate() -> None:
    """Half a minute after the last stat none is expected any more."""
    now_s = NOW_S
    scheduler = Scheduler(Rules(), timing(), lambda: now_s)

    def admitted() -> int:
        rois = [
            due(0.0, site="a", deadline=Deadline(now_s + 60.0, lambda: now_s), arrived_s=now_s)
            for _ in range(60)
        ]
        return scheduler.admit(rois)

    alone = admitted()
    for _ in range(10):
        now_s += 2.0
        scheduler.put([due(now_s + 9.0, STAT)])
        scheduler.take()
    beside = admitted()
    now_s += 31.0
    assert 4 <= beside < 0.7 * alone
    assert admitted() == alone


def test_a_site_whose_announced_rois_did_not_come_is_not_behind_the_others() -> None:
    scheduler = scheduler_of(*sites("b" * 30))
    announced = sites("a" * 30)
    scheduler.put(announced)
    scheduler.release(announced)
    late = sites("a")
    scheduler.put(late)
    assert order(scheduler).index(late[0]) <= TURN


# shares


def test_places_that_were_passed_keep_nobody_out() -> None:
    """A site announces 64 ROIs that never come; those of another are read, one after another."""
    places = [due(900.0, site="a") for _ in range(64)]
    for one in places:
        one.result = None
    scheduler = scheduler_of(due(900.0, site="b"))
    scheduler.put(places)
    scheduler.take()
    for _ in range(64):
        one = due(NOW_S + 20.0, site="b")  # two batches of places fit before it, and no more
        assert scheduler.admit([one]) == 1
        scheduler.put([one])
        assert scheduler.take() == [one]
    assert all(place.has_place for place in places)


def test_a_site_alone_may_fill_the_queue() -> None:
    scheduler = scheduler_of(*sites("aaa"), max_queued=4)
    scheduler.admit(sites("a"))
    scheduler.put(sites("a"))
    with pytest.raises(Overloaded, match="4 ROIs wait, the limit is 4"):
        scheduler.admit(sites("a"))


@pytest.mark.parametrize("most", [4, 32])
@pytest.mark.parametrize("known", [ROUTINE, STAT, None])
def test_a_site_alone_leaves_room_for_a_turn_of_another_that_is_known(
    known: Priority | None, most: int
) -> None:
    """A study of a site that sends one an hour must not be refused for a site that floods.

    Room for stat, where that is known, comes in addition.
    """
    now_s = NOW_S
    scheduler = Scheduler(Rules(), timing(most=most), lambda: now_s)
    if known is not None:
        scheduler.admit([due(1e4, known, site="quiet")])
    now_s += 10 * ACTIVE_S
    refused = Overloaded if known is not None else DeadlineUnmeetable

    def flood() -> None:
        while True:
            roi = due(now_s + 100.0, site="flood", arrived_s=now_s)
            roi.deadline = Deadline(now_s + 100.0, lambda: now_s)
            scheduler.admit([roi])
            scheduler.put([roi])

    with pytest.raises(refused):
        flood()
    study = [due(now_s + 50.0, site="quiet", arrived_s=now_s) for _ in range(4)]
    if known is not None:
        scheduler.admit(study)
    else:
        with pytest.raises(DeadlineUnmeetable):
            scheduler.admit(study)


def test_beside_others_a_site_has_its_share() -> None:
    """Of forty places a site may fill twenty beside others; beyond them, its fair share.

    A site of weight 20 may hold 21 of 22.
    """
    waiting = "a" * 20 + "b"
    with pytest.raises(Overloaded, match=r"a has 20 of 21 queued ROIs; its share .* is 11"):
        scheduler_of(*sites(waiting, 900.0), max_queued=40).admit(sites("a", 900.0))
    scheduler_of(*sites(waiting, 900.0), max_queued=40).admit(sites("b", 900.0))
    heavy = {"max_queued": 40, "site_weights": {"a": 20.0}}
    scheduler_of(*sites(waiting, 900.0), **heavy).admit(sites("a", 900.0))


def test_a_site_alone_beyond_its_share_is_no_lack_of_capacity_but_several_are() -> None:
    """The autoscaler counts ``Overloaded``, and not ``OverShare``."""
    scheduler, outcomes = scheduler_of(*sites("a" * 21 + "b" * 21, 900.0), max_queued=43), []
    scheduler.admit(sites("c", 900.0))
    for site in "aaba":
        with pytest.raises(Overloaded, match="its share") as caught:
            scheduler.admit(sites(site * 9, 900.0))
        outcomes.append(caught.value.outcome)
    assert outcomes == ["OverShare", "OverShare", "Overloaded", "Overloaded"]


def test_a_site_may_always_have_one_turn() -> None:
    """Otherwise a study would be cut where many sites are active, and few ROIs wait."""
    scheduler = scheduler_of(*sites("abcdefgh"), max_queued=16)
    assert scheduler.admit(sites("aaaaaaa", 900.0)) == 7
    assert scheduler.admit(sites("aaaaaaaa", 900.0)) == 7


def test_a_site_that_was_refused_is_active() -> None:
    """A site that fills the time to its deadline leaves room for one that was refused."""
    scheduler = scheduler_of(*sites("a" * 24, at_s=100.0))
    scheduler.admit(sites("a", at_s=100.0))
    with pytest.raises(DeadlineUnmeetable):
        scheduler.admit(sites("b", at_s=51.0))
    with pytest.raises(Overloaded, match="a has 24 of 24 queued ROIs"):
        scheduler.admit(sites("a", at_s=100.0))
    scheduler.admit(sites("b", at_s=100.0))


@pytest.mark.parametrize(("own", "other"), [(ROUTINE, STAT), (STAT, ROUTINE)])
def test_of_a_full_queue_each_priority_leaves_the_other_a_quarter(
    own: Priority, other: Priority
) -> None:
    """Beyond that, the routine ROI that would be read last gives way to stat."""
    rois = [due(900.0, own, site=site) for site in "aab"]
    scheduler = scheduler_of(*rois, max_queued=4)
    scheduler.admit([due(900.0, other, site="c")])
    with pytest.raises(Overloaded, match="3 ROIs wait, the limit is 4"):
        scheduler.admit([due(900.0, own, site="c")])
    scheduler.put([due(900.0, other, site="c")])
    if other is ROUTINE:
        with pytest.raises(Overloaded, match="4 ROIs wait, the limit is 4"):
            scheduler.admit([due(900.0, other, site="c")])
        return
    stat = [due(900.0, other, site="c")]
    scheduler.admit(stat)
    scheduler.put(stat)
    assert [one.waits for one in rois] == [True, True, False]
    assert isinstance(rois[2].result and rois[2].result.exception(), Overloaded)


def test_an_roi_whose_deadline_has_passed_is_refused_whatever_waits() -> None:
    """Also when two full batches wait, where a batch may take a part of the shortest budget."""
    scheduler = scheduler_of(*(due(NOW_S + 900 + i, STAT) for i in range(8)))
    with pytest.raises(DeadlineUnmeetable, match=r"0\.000 s are left"):
        scheduler.admit([due(NOW_S - 1.0)])


def test_a_short_budget_passes_the_long_ones_of_its_site() -> None:
    """They have time to spare, and it was refused behind them; other sites keep their turns."""
    long_ones = [due(190.0 + i / 100, site="a") for i in range(16)]
    scheduler = scheduler_of(*long_ones, *sites("b" * 16, 199.0))
    urgent = due(59.0, site="a")
    scheduler.admit([urgent])
    scheduler.put([urgent])
    assert scheduler.take()[0] is urgent
    served = ""
    while batch := scheduler.take():
        served += "".join(one.site for one in batch)
    assert served.count("b", 0, 24) >= 12
