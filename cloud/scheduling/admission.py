"""Admission control: an ROI may wait if it can be answered in time and within its quota."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from functools import cache

from cloud.scheduling.fairness import LEAD
from cloud.scheduling.planner import Pace, Slot, foresee
from cloud.scheduling.queue import STATS_A_ROUTINE, UNKNOWN_SITE, Claim, Queue, Ticket
from cloud.scheduling.quota import make_room, places_for
from protos.deadline import Clock, Deadline
from protos.errors import DeadlineUnmeetable, Overloaded, OverreadError
from protos.messages import Priority


def admit(
    newcomer: Claim, queue: Queue, free_s: float, pace: Pace, without: Collection[Claim] = ()
) -> list[tuple[Claim, float]]:
    """Who has to go for ``newcomer``, being late behind it, and the seconds each would take.

    Stat may push routine, and routine stat while it has less than every fourth place; a site may
    push one that holds far more of the queue than itself. The next batch may start at ``free_s``;
    those of ``without`` leave in any case.

    Raises:
        DeadlineUnmeetable: it would be late, or it would make another late that it may not.
    """
    order, slots = _ahead(queue, [newcomer], free_s, pace, without)
    now_s = newcomer.came_s
    late = _late(order, slots)
    if newcomer.number in late:
        estimate_s = slots[order.index(newcomer)].answered_s - now_s
        left_s = newcomer.deadline.at_s - now_s
        raise DeadlineUnmeetable(
            f"an answer would take {estimate_s:.3f} s, {left_s:.3f} s are left", estimate_s
        )
    if not late:
        return []
    late -= _late(*_ahead(queue, [], free_s, pace, without))
    pairs = zip(order, slots, strict=True)
    pushed = [(claim, slot.answered_s - now_s) for claim, slot in pairs if claim.number in late]
    stays = _rights(newcomer, queue)
    if any(stays(claim) for claim, _ in pushed):
        estimate_s = max(slot.answered_s for slot in slots) - now_s
        raise DeadlineUnmeetable(
            f"others would be late for it; behind them it would take {estimate_s:.3f} s", estimate_s
        )
    return pushed


def admitted(newcomers: Sequence[Claim], queue: Queue, free_s: float, pace: Pace) -> int:
    """How many of ``newcomers``, alike but for their numbers, would be let in if they came now.

    So many that they would be answered in time and nobody that may stay would be late for them.
    """
    own = {one.number for one in newcomers}
    stays = _rights(newcomers[0], queue)

    @cache
    def late_without() -> set[int]:
        return _late(*_ahead(queue, [], free_s, pace))

    def too_many(n: int) -> bool:
        order, slots = _ahead(queue, newcomers[:n], free_s, pace)
        if late := _late(order, slots):
            late -= late_without()
        return any(one.number in own or stays(one) for one in order if one.number in late)

    if not too_many(len(newcomers)):
        return len(newcomers)
    return bisect_left(range(1, len(newcomers)), True, key=too_many)


def _ahead(
    queue: Queue,
    newcomers: Sequence[Claim],
    free_s: float,
    pace: Pace,
    without: Collection[Claim] = (),
) -> tuple[list[Claim], list[Slot]]:
    """What waits and the newcomers in their order, and the slot of each."""
    full = pace.worth()
    each_s = pace.entrance.estimate_s(full) / full
    order = queue.in_order(free_s, newcomers, each_s=each_s, without=without)
    return order, foresee(order, free_s, pace)


def _late(claims: Sequence[Claim], slots: Sequence[Slot]) -> set[int]:
    """The numbers of those that would be answered after their deadline."""
    pairs = zip(claims, slots, strict=True)
    return {claim.number for claim, slot in pairs if slot.answered_s > claim.deadline.at_s}


def _rights(newcomer: Claim, queue: Queue) -> Callable[[Claim], bool]:
    """Whether ``newcomer`` may not push a claim which was let in before it."""
    waiting, held, weight = queue.waiting(), queue.held(), queue.rules.weight
    stats = sum(one.priority is Priority.STAT for one in waiting)
    # one more routine ROI would still be no more than the places that are routine's
    routine_lacks_places = STATS_A_ROUTINE * (len(waiting) - stats + 1) <= stats
    mine = (held.get(newcomer.site, 0) + 1) / weight(newcomer.site)

    def stays(claim: Claim) -> bool:
        if claim.priority is not newcomer.priority:
            return claim.priority is Priority.STAT and not routine_lacks_places
        return held.get(claim.site, 0) / weight(claim.site) <= LEAD + mine

    return stays


STALE_S = 5.0
"""After so long without a batch what was learnt of them may no longer hold."""


class Gate:
    """The way into ``queue``, which has ``places``.

    Attributes:
        free_s: when the next batch may start, by what is expected of the running one; minus
            infinity while none runs.
        read_at_s: when the last batch ended.
        under_way: batches that are being read.
    """

    def __init__(self, queue: Queue, pace: Pace, places: int, clock: Clock) -> None:
        self.free_s = self.read_at_s = -math.inf
        self.under_way = 0
        self._queue, self._pace, self._places, self._clock = queue, pace, places, clock
        self._by_deadline = queue.rules.by_deadline

    @property
    def queue_s(self) -> float:
        """How long a routine ROI that came now, with time to spare, would wait, in seconds."""
        full = self._pace.worth()
        before_s = len(self._queue) // full * self._pace.entrance.estimate_s(full)
        return max(0.0, self._start_s() - self._clock()) + before_s

    def check(
        self, deadline: Deadline, priority: Priority, site: str = UNKNOWN_SITE, rois: int = 1
    ) -> int:
        """How many of so many ROIs, one at least, could be answered in time if they came now.

        Raises:
            Overloaded: the queue is full, or the site has its share of it.
            DeadlineUnmeetable: the answer would come too late, or make others late.
        """
        now_s = self._clock()
        claims = [
            Claim(deadline=deadline, priority=priority, came_s=now_s, site=site)
            for _ in range(rois)
        ]
        self.room(claims[0])
        most = max(1, places_for(claims[0], self._queue, self._places))
        if rois == 1 or not self._by_deadline:
            return min(rois, most)
        return max(1, admitted(claims[:most], self._queue, self._start_s(), self._pace))

    def room(self, claim: Claim) -> list[tuple[Ticket, OverreadError]]:
        """Whom ``claim`` pushes out, and what they are told; raises as `check`."""
        told: dict[int, OverreadError] = {}
        gone = make_room(claim, self._queue, self._places, claim.came_s)
        for one in gone:
            told[one.number] = Overloaded(f"others wait too, and {one.site} had most places")
        if self._by_deadline and not self.tries(claim.deadline):
            for one, takes_s in admit(claim, self._queue, self._start_s(), self._pace, gone):
                told[one.number] = DeadlineUnmeetable(
                    f"behind what came since an answer would take {takes_s:.3f} s", takes_s
                )
        return [(one, told[one.number]) for one in self._queue.waiting() if one.number in told]

    def tries(self, deadline: Deadline) -> bool:
        """Whether an ROI is read whatever is expected of it: nothing waits, and nothing was read.

        Else a stall that taught to expect too much would keep out all that could teach otherwise.
        """
        idle = not self.under_way and self._clock() - self.read_at_s > STALE_S
        return idle and not len(self._queue) and not deadline.passed

    def _start_s(self) -> float:
        """When the next batch may start; a batch that overran takes as long again as it has."""
        now_s = self._clock()
        if math.isinf(self.free_s) or now_s <= self.free_s:
            return max(now_s, self.free_s)
        return now_s + (now_s - self.free_s)
