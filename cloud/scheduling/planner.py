"""What can be read together, when it would be answered, and who is let in: all by estimate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from cloud.scheduling.cost import CostModel
from cloud.scheduling.fairness import LEAD
from cloud.scheduling.queue import STATS_A_ROUTINE, Claim, Queue
from protos.errors import DeadlineUnmeetable
from protos.messages import Priority


@dataclass(frozen=True)
class Pace:
    """How a stage keeps time, learnt.

    ``answer`` is from a batch's start to its answer, ``entrance`` from its start until the next
    may start: the same where a stage is one, less where it is a pipeline. No batch has more than
    ``most`` ROIs.
    """

    answer: CostModel
    entrance: CostModel
    most: int

    def worth(self) -> int:
        """The batch beyond which company saves hardly anything."""
        return self.entrance.worth(self.most)


def together(claims: Sequence[Claim], start_s: float, pace: Pace) -> int:
    """How many of the first ``claims``, one at least, are worth reading at once from ``start_s``.

    None of them misses its deadline for the company it has.
    """
    soonest_s, n = claims[0].deadline.at_s, 1
    most = min(pace.worth(), len(claims))
    while n < most:
        soonest_s = min(soonest_s, claims[n].deadline.at_s)
        if start_s + pace.answer.bound_s(n + 1) > soonest_s:
            break
        n += 1
    return n


class Slot(NamedTuple):
    """When a claim would be read, and answered, on the clock."""

    start_s: float
    answered_s: float


def foresee(claims: Sequence[Claim], free_s: float, pace: Pace) -> list[Slot]:
    """The slot of each of ``claims``, in order, if batches start from ``free_s`` on.

    What is late whatever is done costs the others nothing: it will not be read.
    """
    slots: list[Slot] = []
    start_s, alone_s = free_s, pace.answer.bound_s(1)
    while (at := len(slots)) < len(claims):
        if start_s + alone_s > claims[at].deadline.at_s:
            slots.append(Slot(start_s, start_s + alone_s))
            continue
        n = together(claims[at : at + pace.most], start_s, pace)
        slots += [Slot(start_s, start_s + pace.answer.bound_s(n))] * n
        start_s += pace.entrance.estimate_s(n)
    return slots


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
