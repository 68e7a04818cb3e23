"""Admission control: an ROI may wait if it can be answered in time and within its quota."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from functools import cache

from cloud.scheduling.entry import UNKNOWN_SITE, QueuedRoi, QueueEntry
from cloud.scheduling.fairness import MAX_LEAD
from cloud.scheduling.planner import BatchTiming, forecast
from cloud.scheduling.queue import STATS_PER_ROUTINE, Queue
from cloud.scheduling.quota import preempt_for_quota, quota_left
from protos.deadline import Clock, Deadline
from protos.errors import DeadlineUnmeetable, Overloaded, OverreadError
from protos.messages import Priority

STALE_S = 5.0
"""Seconds without a batch after which the learnt cost may be out of date."""


class AdmissionControl:
    """Decides which ROIs enter ``queue``, which holds ``max_queued`` of them.

    Attributes:
        stage_free_s: when the next batch is expected to start; minus infinity while none runs.
        last_batch_s: when the last batch ended.
        running_batches: batches that are being read.
    """

    def __init__(self, queue: Queue, timing: BatchTiming, max_queued: int, clock: Clock) -> None:
        self.stage_free_s = self.last_batch_s = -math.inf
        self.running_batches = 0
        self._queue, self._timing, self._max_queued = queue, timing, max_queued
        self._clock, self._by_deadline = clock, queue.rules.by_deadline

    @property
    def queue_s(self) -> float:
        """Seconds that a routine ROI with a late deadline would wait if it arrived now."""
        # the rest of the running batch, and the full batches that wait
        full = self._timing.efficient_size()
        before_s = len(self._queue) // full * self._timing.interval.estimate_s(full)
        return max(0.0, self._start_s() - self._clock()) + before_s

    def check(
        self, deadline: Deadline, priority: Priority, site: str = UNKNOWN_SITE, rois: int = 1
    ) -> int:
        """Return how many of ``rois`` would be admitted and answered in time if they arrived now.

        If any is admitted the first is, so the number is at least one.

        Raises:
            Overloaded: the queue is full, or the site has used up its quota.
            DeadlineUnmeetable: the answer would be late, or make others late.
        """
        # equal but for their numbers: if the first is rejected, all are
        now_s = self._clock()
        entries = [
            QueueEntry(deadline=deadline, priority=priority, arrived_s=now_s, site=site)
            for _ in range(rois)
        ]
        self.admit(entries[0])
        # then as many as find room without preemption, and of those as many as are in time
        most = max(1, quota_left(entries[0], self._queue, self._max_queued))
        if rois == 1 or not self._by_deadline:
            return min(rois, most)
        start_s = self._start_s()
        return max(1, count_admissible(entries[:most], self._queue, start_s, self._timing))

    def admit(self, entry: QueueEntry) -> list[tuple[QueuedRoi, OverreadError]]:
        """Return the queued ROIs that ``entry`` preempts, each with its error.

        The caller removes them from the queue.

        Raises:
            OverreadError: ``entry`` is rejected, see `check`.
        """
        errors: dict[int, OverreadError] = {}
        # first the size of the queue, then the time: an ROI preempted for the first helps the
        # second
        over_quota = preempt_for_quota(entry, self._queue, self._max_queued, entry.arrived_s)
        for one in over_quota:
            errors[one.number] = Overloaded(
                f"preempted: the queue is full, or site {one.site} has used up its quota"
            )
        if self._by_deadline and not self.is_probe(entry.deadline):
            late = preempt_for_deadline(
                entry, self._queue, self._start_s(), self._timing, over_quota
            )
            for one, takes_s in late:
                errors[one.number] = DeadlineUnmeetable(
                    f"preempted by an ROI that arrived later; an answer would take {takes_s:.3f} s",
                    takes_s,
                )
        return [(one, errors[one.number]) for one in self._queue.waiting() if one.number in errors]

    def is_probe(self, deadline: Deadline) -> bool:
        """Return whether an idle service should read this ROI to update its estimate.

        Otherwise the high estimate after a stall would reject every ROI that could correct it.
        """
        idle = not self.running_batches and self._clock() - self.last_batch_s > STALE_S
        return idle and not len(self._queue) and not deadline.passed

    def _start_s(self) -> float:
        """Return when the next batch may start; an overrun so far is expected to double."""
        now_s = self._clock()
        if math.isinf(self.stage_free_s) or now_s <= self.stage_free_s:
            return max(now_s, self.stage_free_s)  # no batch runs, or it is within its time
        return now_s + (now_s - self.stage_free_s)


def preempt_for_deadline(
    newcomer: QueueEntry,
    queue: Queue,
    free_s: float,
    timing: BatchTiming,
    without: Collection[QueueEntry] = (),
) -> list[tuple[QueueEntry, float]]:
    """Return the entries that ``newcomer`` would make late, and the seconds each would take.

    These are to be preempted. The next batch may start at ``free_s``; the entries of ``without``
    leave the queue in any case.

    Raises:
        DeadlineUnmeetable: it would be late itself, or would make a protected entry late.
    """
    # first with the newcomer: is it in time, and are all others?
    order, answered_s = _plan(queue, [newcomer], free_s, timing, without)
    now_s = newcomer.arrived_s
    late = _late(order, answered_s)
    if newcomer.number in late:
        estimate_s = answered_s[order.index(newcomer)] - now_s
        left_s = newcomer.deadline.at_s - now_s
        raise DeadlineUnmeetable(
            f"an answer would take {estimate_s:.3f} s, {left_s:.3f} s are left", estimate_s
        )
    if not late:
        return []
    # then without it: it does not count for entries that would be late anyway
    late -= _late(*_plan(queue, [], free_s, timing, without))
    pairs = zip(order, answered_s, strict=True)
    preempted = [(one, at_s - now_s) for one, at_s in pairs if one.number in late]
    is_protected = _protection(newcomer, queue)
    if any(is_protected(one) for one, _ in preempted):
        estimate_s = max(answered_s) - now_s
        raise DeadlineUnmeetable(
            "admitting this ROI would make queued ROIs miss their deadlines; "
            f"estimated wait {estimate_s:.3f} s",
            estimate_s,
        )
    return preempted


def count_admissible(
    newcomers: Sequence[QueueEntry], queue: Queue, free_s: float, timing: BatchTiming
) -> int:
    """Return how many of ``newcomers``, equal but for their numbers, can be admitted now.

    All of these would be answered in time, and would make no protected entry late.
    """
    own = {one.number for one in newcomers}
    is_protected = _protection(newcomers[0], queue)

    @cache
    def late_anyway() -> set[int]:
        return _late(*_plan(queue, [], free_s, timing))

    # as in `preempt_for_deadline`, for the first n at once
    def too_many(n: int) -> bool:
        order, answered_s = _plan(queue, newcomers[:n], free_s, timing)
        if late := _late(order, answered_s):
            late -= late_anyway()
        return any(one.number in own or is_protected(one) for one in order if one.number in late)

    # usually all fit; otherwise bisect, since one more newcomer never helps the others
    if not too_many(len(newcomers)):
        return len(newcomers)
    return bisect_left(range(1, len(newcomers)), True, key=too_many)


def _plan(
    queue: Queue,
    newcomers: Sequence[QueueEntry],
    free_s: float,
    timing: BatchTiming,
    without: Collection[QueueEntry] = (),
) -> tuple[list[QueueEntry], list[float]]:
    """Return the queue with ``newcomers`` in reading order, and when each entry is answered."""
    # when routine entries age depends on the pace of reading: that of full batches
    full = timing.efficient_size()
    interval_s = timing.interval.estimate_s(full) / full
    order = queue.in_order(free_s, newcomers, interval_s=interval_s, without=without)
    return order, forecast(order, free_s, timing)


def _late(entries: Sequence[QueueEntry], answered_s: Sequence[float]) -> set[int]:
    """Return the numbers of the entries that would be answered after their deadline."""
    pairs = zip(entries, answered_s, strict=True)
    return {one.number for one, at_s in pairs if at_s > one.deadline.at_s}


def _protection(newcomer: QueueEntry, queue: Queue) -> Callable[[QueueEntry], bool]:
    """Return the preemption rules: a function that tells whether a queued entry is protected.

    Stat may preempt routine. Routine may preempt stat if fewer than one in four queued ROIs are
    routine. Within a priority, a site may preempt another that holds far more of the queue than
    itself.
    """
    waiting, held, weight = queue.waiting(), queue.count_by_site(), queue.rules.weight
    stats = sum(one.priority is Priority.STAT for one in waiting)
    # routine, the newcomer included, would hold at most one in four
    routine_is_short = STATS_PER_ROUTINE * (len(waiting) - stats + 1) <= stats
    own = (held[newcomer.site] + 1) / weight(newcomer.site)

    def is_protected(entry: QueueEntry) -> bool:
        if entry.priority is not newcomer.priority:
            return entry.priority is Priority.STAT and not routine_is_short
        return held[entry.site] / weight(entry.site) <= MAX_LEAD + own

    return is_protected
