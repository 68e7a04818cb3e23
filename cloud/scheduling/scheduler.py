"""The scheduler: which ROIs may wait, in which order they are read, and how many at once.

Stat is read before routine, except that one of four places is for routine that has waited long.
Within a priority sites take turns of `TURN` ROIs, by start-time fair queueing (Goyal et al.,
SIGCOMM 1996). The earliest deadline is first in a turn, and among the ROIs of a site.

An ROI is refused on arrival if it could not be answered in time, or would make another late. For
routine, stat counts that is expected at the rate of the last half minute. For stat, routine counts
in its places alone: a routine ROI that then cannot be in time gives way.
"""

import heapq
import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from cloud.scheduling.arrivals import STATS_PER_ROUTINE, TURN, Arrivals, Rules
from cloud.scheduling.cost import BatchTiming
from cloud.scheduling.waiting import WaitingRoi
from protos.deadline import Clock
from protos.errors import DeadlinePassed, DeadlineUnmeetable, Overloaded, OverreadError

BATCH_SHARE = 0.25
"""Part of the shortest budget that waits which a batch may take beyond the efficient size."""

SPREAD = 2.0
"""Standard deviations beyond the stat that is expected, for which routine has time to spare."""

Queue = list[tuple[float, float, int, WaitingRoi]]
"""The ROIs of a priority in reading order: by turn, deadline and number."""


class Scheduler:
    """Holds the waiting ROIs, and the places of announced ones.

    Attributes:
        busy_until_s: when each instance of the model, by number, is expected to start its next
            batch; minus infinity while it reads none. There is at least one.
        gives_way: whether routine that stat makes late is given up at once.
    """

    gives_way = True

    def __init__(self, rules: Rules, timing: BatchTiming, clock: Clock) -> None:
        self.busy_until_s = {0: -math.inf}
        self.rules, self.timing, self._clock = rules, timing, clock
        self._arrivals = Arrivals(rules, timing, clock)
        # the plan: who comes is added, who goes is taken out
        self._queues: dict[bool, Queue] = {True: [], False: []}  # of stat, and of routine
        self._anyway: dict[WaitingRoi, float] | None = None  # late without newcomers; None: unknown
        # newcomers, and the queue with them, so that they need not be added a second time
        self._tried: tuple[Sequence[WaitingRoi], dict[WaitingRoi, float], Queue] | None = None
        self._virtual, self._finish = 0.0, dict[str, float]()
        self._stats_in_a_row = 0
        self._is_outdated = False  # whether stat came since the last batch

    def __len__(self) -> int:
        return len(self.waiting)  # metrics count in another thread

    @property
    def waiting(self) -> list[WaitingRoi]:
        """The ROIs that have arrived and wait."""
        queued = itertools.chain.from_iterable(self._queues.values())
        return [entry[3] for entry in queued if entry[3].waits]

    @property
    def queue_s(self) -> float:
        """Seconds that a routine ROI with a late deadline would wait if it arrived now."""
        return self._wait_s(self._queued)

    @property
    def _queued(self) -> int:
        return sum(map(len, self._queues.values()))

    def admit(self, newcomers: Sequence[WaitingRoi]) -> int:
        """Return how many of ``newcomers`` may wait, at least one.

        They are equal but for their numbers, and none has a place yet. Only the first may be a
        probe.

        Raises:
            Overloaded: there is no room for them, or the site has used up its share.
            DeadlineUnmeetable: an answer would be late, or make others late.
        """
        first, now_s = newcomers[0], self._clock()
        self._prune()
        self._arrivals.note(first)
        self._check_room(first, 1)

        def has_no_room(count: int) -> bool:
            with suppress(Overloaded):
                self._check_room(first, count)
                return False
            return True

        # how many are admitted is found by halving: one more newcomer never helps the others
        most = 1 + bisect_left(range(2, len(newcomers) + 1), True, key=has_no_room)
        late = self._late(newcomers[:most])
        in_time = next((i for i in range(most) if newcomers[i] in late), most)
        if not in_time and not first.is_probe:
            would_s, left_s = late[first] - now_s, max(0.0, first.deadline.at_s - now_s)
            text = f"an answer would take {would_s:.3f} s, {left_s:.3f} s are left"
            raise DeadlineUnmeetable(text, would_s)
        in_time = max(1, in_time)
        if (kept_s := self._made_late(first, late)) is None or first.is_probe:
            return in_time

        def hurts(count: int) -> bool:
            return self._made_late(first, self._late(newcomers[:count])) is not None

        if in_time == 1 or hurts(1):
            kept = f"a queued ROI would miss its deadline: it would take {kept_s - now_s:.3f} s"
            raise DeadlineUnmeetable(kept)  # the bound is another ROI's
        return 1 + bisect_left(range(2, in_time + 1), True, key=hurts)

    def put(self, rois: Sequence[WaitingRoi]) -> None:
        """Give places to ROIs that were admitted together; in a full queue routine gives way."""
        first = rois[0]
        starts, self._queues[first.is_stat] = self._with(rois)
        for roi, start in starts.items():
            roi.start, roi.has_place = start, True
        self._anyway = self._tried = None
        if first.is_stat:
            self._arrivals.note_stat(len(rois))
            self._is_outdated = self.gives_way
        if (excess := self._queued - self.rules.max_queued) > 0:
            for *_, roi in self._queues[False][-excess:]:  # what would be read last loses least
                self._give_up(roi, Overloaded("the queue is full, and stat came"))

    def release(self, rois: Iterable[WaitingRoi]) -> None:
        """Take ROIs, and places that are not needed, out of the queue."""
        for roi in (gone := {roi for roi in rois if roi.has_place}):
            roi.has_place = False
        if gone:
            for is_stat, queue in self._queues.items():
                self._queues[is_stat] = [entry for entry in queue if entry[3].has_place]
            if not self._queued:
                self._virtual, self._finish = 0.0, {}
            self._anyway = self._tried = None

    def take(self) -> list[WaitingRoi]:
        """Remove and return the next batch; empty if nothing waits any more.

        What can no longer be answered in time is dropped, with its error.
        """
        now_s, alone_s = self._clock(), self.timing.latency.bound_s(1)
        # what cannot be in time even in a batch of its own would only delay the others
        for roi in self.waiting:
            waited = f"after {now_s - roi.arrived_s:.3f} s in the queue"
            if (left_s := roi.deadline.remaining_s) <= 0.0:
                self._give_up(roi, DeadlinePassed(f"the deadline passed {waited}"))
            elif left_s < alone_s and not roi.is_probe:
                late = f"{waited} {left_s:.3f} s are left; reading takes {alone_s:.3f} s"
                self._give_up(roi, DeadlineUnmeetable(late, alone_s))
        self._prune()
        if self._is_outdated:  # what will be late for stat learns it now, and not at its deadline
            for roi, at_s in self._late((), expected=False).items():
                if not roi.is_stat and not roi.is_probe:
                    way = f"stat came first; an answer would take {at_s - now_s:.3f} s"
                    self._give_up(roi, DeadlineUnmeetable(way, at_s - now_s))
            self._is_outdated = False
        order = [roi for roi in self.order(self._queues, now_s) if roi.waits]
        batch = order[: self.batch_size(order, now_s)]
        for roi in batch:
            # places in fair queueing go on from the last one that was read: time that a site was
            # idle earns no credit
            self._virtual = max(self._virtual, roi.start)
            next_ = roi.start + 1.0 / self.rules.weight(roi.site)
            self._finish[roi.site] = max(next_, self._finish.get(roi.site, 0.0))
            self._stats_in_a_row = self._stats_in_a_row + 1 if roi.is_stat else 0
        self.release(batch)
        self._move_on()
        return batch

    def _move_on(self) -> None:
        """Move places that have been passed, since their ROIs did not come, behind what was read.

        What a site announces and does not send must not keep others out.
        """
        for is_stat, queue in self._queues.items():
            passed = dict[str, float]()
            for roi in (places := [entry[3] for entry in queue if not entry[3].result]):
                passed[roi.site] = max(passed.get(roi.site, 0.0), self._virtual - roi.start)
            if any(passed.values()):
                for roi in places:
                    roi.start += passed[roi.site]
                entries = [(r.start // TURN, r.deadline.at_s, r.number, r) for *_, r in queue]
                self._queues[is_stat] = sorted(entries)

    def order(
        self, queues: Mapping[bool, Queue], start_s: float, each_s: float = 0.0
    ) -> list[WaitingRoi]:
        """Return the ROIs in reading order; from ``start_s`` one is read every ``each_s``."""
        stat, routine = ([entry[3] for entry in queues[is_stat]] for is_stat in (True, False))
        if not stat:
            return routine
        # when the first of each tail of the routine ROIs is aged: an ROI whose turn is later counts
        # for those before it, since they stand between it and the model
        aged_s = [*itertools.accumulate([roi.aged_s for roi in reversed(routine)], min)][::-1]
        # merge both: stat first, but after three stat ROIs in a row one routine ROI if some is aged
        order, i, row = list[WaitingRoi](), 0, self._stats_in_a_row
        while i < len(stat):
            j = len(order) - i
            due = j < len(routine) and aged_s[j] <= start_s + len(order) * each_s
            if due and row >= STATS_PER_ROUTINE:
                order.append(routine[j])
                row = 0
            else:
                order.append(stat[i])
                i, row = i + 1, row + 1
        return order + routine[len(order) - i :]

    def batch_size(self, order: Sequence[WaitingRoi], start_s: float) -> int:
        """Return how many of the first ROIs to read at once: none is late because of the others.

        It is the efficient size. When two full batches wait it is larger, up to the full one, as
        long as a batch takes at most `BATCH_SHARE` of the shortest budget: what comes next and is
        urgent must not find the model busy for too long.
        """
        most = self._most(order)
        return self._size([roi.deadline.at_s for roi in order[:most]], start_s)

    def _most(self, order: Sequence[WaitingRoi]) -> int:
        """Return the size of a batch of which none is urgent."""
        full = self.timing.max_batch
        most = self.timing.interval.efficient_size(full)
        if len(order) >= 2 * full:
            limit_s = BATCH_SHARE * min([roi.budget_s for roi in order])
            fits = [n for n in range(full + 1) if self.timing.latency.bound_s(n) <= limit_s]
            most = max((most, *fits))  # none where the deadline has passed
        return most

    def _size(self, due_s: Sequence[float], start_s: float) -> int:
        """Return how many of a batch of ROIs that are due then none of them is late for."""
        bound_s = self.timing.latency.bound_s
        # one more ROI makes the whole batch later: stop before it makes the most urgent one late
        soonest_s = math.inf
        for n, at_s in enumerate(due_s):
            soonest_s = min(soonest_s, at_s)
            if n and start_s + bound_s(n + 1) > soonest_s:
                return n
        return len(due_s)

    def _check_room(self, first: WaitingRoi, count: int) -> None:
        """Raise `Overloaded` in a full queue, and beyond the share of a site."""
        # each priority leaves the other a quarter; beyond that routine gives way to stat
        own, others = (len(self._queues[of]) for of in (first.is_stat, not first.is_stat))
        most, left = self.rules.max_queued, self._arrivals.places_left(to_stat=not first.is_stat)
        if own + (left if first.is_stat else max(others, left)) + count > most:
            full = f"the queue is full: {own + others} ROIs wait, the limit is {most}"
            raise Overloaded(full, limit=most)
        waits = Counter([entry[3].site for entry in self._queues[first.is_stat]])
        wait_s = self._wait_s((own if first.is_stat else self._queued) + count - 1)
        self._arrivals.check_share(first, count, waits, wait_s, self._each_s)

    def _starts(self, newcomers: Sequence[WaitingRoi]) -> dict[WaitingRoi, float]:
        """Return the places of ``newcomers`` in fair queueing, and of those that follow them.

        A site's first place is that of its earliest deadline. Otherwise ROIs that have time to
        spare would keep its urgent ones out.
        """
        first, each = newcomers[0], 1.0 / self.rules.weight(newcomers[0].site)
        begin = max(self._virtual, self._finish.get(first.site, 0.0))
        behind = list[WaitingRoi]()
        for is_stat, queue in self._queues.items():
            if own := [entry[3] for entry in queue if entry[3].site == first.site]:
                begin = max(begin, own[-1].start + each)
            if is_stat is first.is_stat:
                behind = [roi for roi in own if roi.deadline.at_s > first.deadline.at_s]
        starts = [roi.start for roi in behind]
        starts += [begin + i * each for i in range(len(newcomers))]
        return dict(zip([*newcomers, *behind], starts, strict=True))

    def _with(self, newcomers: Sequence[WaitingRoi]) -> tuple[dict[WaitingRoi, float], Queue]:
        """Return what `_starts` does, and the queue of the newcomers' priority with them in it."""
        if self._tried is None or self._tried[0] != newcomers:
            starts, queue = self._starts(newcomers), self._queues[newcomers[0].is_stat]
            if len(starts) > len(newcomers):
                queue = [entry for entry in queue if entry[3] not in starts]
            added = [(at // TURN, roi.deadline.at_s, roi.number, roi) for roi, at in starts.items()]
            self._tried = newcomers, starts, sorted(queue + added)
        return self._tried[1:]

    def _late(
        self, newcomers: Sequence[WaitingRoi], *, expected: bool = True
    ) -> dict[WaitingRoi, float]:
        """Return the ROIs that would be late with these newcomers, and when they were answered.

        Routine is late for stat that is still to come too, if that is ``expected``. Otherwise only
        what has arrived counts, and no batch takes longer than usual: late is then what will be.
        """
        # the clockwork of the model, run ahead: each batch goes to the instance that is free first,
        # and holds as many ROIs as `take` would put into it then
        now_s, full, interval = self._clock(), self.timing.max_batch, self.timing.interval
        starts_s, queues = self._starts_s(), self._queues
        if newcomers:
            queues = {**queues, newcomers[0].is_stat: self._with(newcomers)[1]}
        each_s = self._each_s
        order = self.order(queues, starts_s[0], each_s)
        if not expected:
            order = [roi for roi in order if roi.waits]
        sizes, latency = range(full + 1), self.timing.latency
        bounds_s, interval_s = [*map(latency.bound_s, sizes)], [*map(interval.estimate_s, sizes)]
        latency_s = bounds_s if expected else [*map(latency.estimate_s, sizes)]
        part, burst = self._arrivals.stat_to_come(each_s) if expected else (0.0, 0.0)
        # while routine waits, stat comes and makes it wait longer: mean and standard deviation
        # of the time until work that comes at random has been read (Takács, 1962)
        slower, alone_s = part / (1.0 - part), latency_s[1]
        spread = SPREAD * math.sqrt(burst * each_s * part / (1.0 - part) ** 3)
        most, efficient = self._most(order), interval.efficient_size(full)
        due_s = [roi.deadline.at_s for roi in order]
        late, at, stats = dict[WaitingRoi, float](), 0, list[int]()
        while at < len(order):
            start_s = starts_s[0]
            if start_s + alone_s > due_s[at]:  # it will not be read
                late[order[at]] = start_s + alone_s
                at += 1
                continue
            size = most if len(order) - at >= 2 * full else efficient
            batch_s = due_s[at : at + size]
            soonest_s, n = min(batch_s), len(batch_s)
            if start_s + bounds_s[n] > soonest_s:
                n = self._size(batch_s, start_s)
            answered_s, wait_s = start_s + latency_s[n], max(0.0, start_s - now_s)
            to_come_s = wait_s * slower + spread * math.sqrt(wait_s)
            if answered_s + to_come_s > soonest_s:
                stats = stats or [0, *itertools.accumulate([roi.is_stat for roi in order])]
                for i, roi in enumerate(order[at : at + n], at):
                    at_s = answered_s
                    if not roi.is_stat:
                        # once it is aged, three come before it and each routine ROI before it
                        turns = STATS_PER_ROUTINE * (i - stats[i] + 1) - stats[i]
                        most_s = max(0.0, turns * each_s) + max(0.0, roi.aged_s - start_s)
                        at_s += min(to_come_s, most_s)
                    if at_s > due_s[i]:
                        late[roi] = at_s
            heapq.heapreplace(starts_s, start_s + interval_s[n])
            at += n
        return late

    def _made_late(self, first: WaitingRoi, late: Mapping[WaitingRoi, float]) -> float | None:
        """Return when the first ROI would be answered that newcomers make late, None for none."""
        mine = [roi for roi in late if roi.has_place and (roi.is_stat or not first.is_stat)]
        if mine and self._anyway is None:
            # a newcomer does not count for those that will be late, but may not delay what only
            # stat to come could make late
            self._anyway = {
                **self._late(()),
                **dict.fromkeys(self._late((), expected=False), math.inf),
            }
        anyway = self._anyway or {}
        return next((late[roi] for roi in mine if late[roi] > anyway.get(roi, 0.0) + 1e-6), None)

    def _give_up(self, roi: WaitingRoi, error: OverreadError) -> None:
        """Take an ROI, or a place that is kept, out of the queue with an error."""
        roi.fail(error)
        self.release((roi,))

    def _prune(self) -> None:
        """Take out what nobody waits for any more, and places whose ROIs did not come."""
        now_s, queued = self._clock(), itertools.chain.from_iterable(self._queues.values())
        rois = [entry[3] for entry in queued]
        self.release([r for r in rois if (r.result.done() if r.result else now_s > r.kept_until_s)])

    @property
    def _each_s(self) -> float:
        """Seconds of an ROI in full batches of all instances."""
        full = self.timing.max_batch
        return self.timing.interval.estimate_s(full) / full / len(self.busy_until_s)

    def _wait_s(self, rois: int) -> float:
        """Return in how many seconds a batch may start after so many ROIs."""
        full, starts_s = self.timing.max_batch, self._starts_s()
        before_s = rois // full * self.timing.interval.estimate_s(full) / len(starts_s)
        return max(0.0, starts_s[0] - self._clock()) + before_s

    def _starts_s(self) -> list[float]:
        """Return when each instance may start a batch, as a heap.

        An overrun so far is expected to double.
        """
        now_s, ends_s = self._clock(), self.busy_until_s.values()
        return sorted(now_s if math.isinf(at) else max(at, 2 * now_s - at) for at in ends_s)
