"""The scheduler: which ROIs may wait, in which order they are read, and how many at once.

Stat is read before routine, except that one of four places is for routine that has waited long.
Within a priority sites take turns of `TURN` ROIs, by start-time fair queueing (Goyal et al.,
SIGCOMM 1996). The earliest deadline is first in a turn, and among the ROIs of a site.

An ROI is refused on arrival if it could not be answered in time, or would make another late. What
was admitted is never given up for another. Instead each priority leaves the other one places to
come: routine as many as it has, stat one for three, and each a quarter of the queue.
"""

import asyncio
import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cloud.limits import SITE_SHARE
from cloud.scheduling.cost import BatchTiming
from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos.deadline import Clock, Deadline
from protos.errors import DeadlinePassed, DeadlineUnmeetable, Overloaded
from protos.messages import Priority

UNKNOWN_SITE = "unknown"

TURN = 8.0
"""ROIs of one turn of a site, divided by its weight."""

STATS_PER_ROUTINE = 3
"""Stat ROIs that are read before the next aged routine ROI, while both wait."""

LEFT = {True: 1 / STATS_PER_ROUTINE, False: 1.0}
"""Places that each stat ROI, and each routine one, leaves the other priority, if that may come."""

BATCH_SHARE = 0.25
"""Part of the shortest budget that waits which a batch may take beyond the efficient size."""

ROUTINE_MAX_WAIT_S = 1.0
"""A routine ROI is aged after this wait, or after half of its budget if that is shorter."""

EXPECTED_S = 86_400.0
"""A priority is left places to come for this time after its last ROI came."""

ACTIVE_S, KNOWN_S = 2.0, 600.0
"""A site counts as active, and as known, for this time after its last ROI came."""


@dataclass(frozen=True)
class Rules:
    """What a service allows.

    Attributes:
        max_queued: largest number of ROIs that wait.
        site_weights: the weight of each named site in shares and turns; others have weight 1.
    """

    max_queued: int = 512
    site_weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, site: str) -> float:
        """Return the weight of ``site``, 1 where none is set."""
        return self.site_weights.get(site, 1.0)


@dataclass(frozen=True)
class RoiResult:
    """What the model read in one ROI.

    The ROI waited ``queue_s`` and was read in the batch numbered ``batch``, which began at
    ``began_s`` on the clock, held ``batch_rois`` and took ``compute_s``.
    """

    reading: Reading
    queue_s: float
    compute_s: float
    batch: int
    began_s: float
    batch_rois: int = 1


@dataclass(eq=False, kw_only=True)
class WaitingRoi:
    """One ROI of ``site``, which arrived at ``arrived_s`` on the clock.

    It gets ``voxels``, uint8 ``(z, y, x)``, and ``result`` once it is admitted. Its caller awaits
    ``result``; cancelling that takes the ROI out of the queue. A probe is read even if it is
    expected to be late, so that the cost of a batch is measured again. ``failed`` is whether a
    batch with it has failed. ``start`` is its place in fair queueing: what its site had before, in
    ROIs divided by the site's weight.
    """

    deadline: Deadline
    priority: Priority
    arrived_s: float
    site: str = UNKNOWN_SITE
    is_probe: bool = False
    failed: bool = False
    voxels: UInt8Array = field(init=False)
    result: asyncio.Future[RoiResult] = field(init=False)
    start: float = 0.0
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def is_stat(self) -> bool:
        """Whether it is read before routine."""
        return self.priority is Priority.STAT

    @property
    def waits(self) -> bool:
        """Whether somebody still waits for its result."""
        return not self.result.done()


class Scheduler:
    """Holds the waiting ROIs.

    Attributes:
        busy_until_s: when each instance of the model, by number, is expected to start its next
            batch; minus infinity while it reads none. There is at least one.
    """

    def __init__(self, rules: Rules, timing: BatchTiming, clock: Clock) -> None:
        self.busy_until_s = {0: -math.inf}
        self.rules, self.timing, self._clock = rules, timing, clock
        self._rois: list[WaitingRoi] = []
        self._virtual, self._finish = 0.0, dict[str, float]()
        self._stats_in_a_row = 0
        self._active: dict[str, float] = {}  # when each site was last admitted or refused
        self._came_s: dict[bool, float] = {}  # when stat, and routine, was last
        self._beyond_s: dict[str, float] = {}  # when each site was last refused beyond its share
        self._last_site, self._changed_s = "", -math.inf  # and when the last was another one

    def __len__(self) -> int:
        return sum(roi.waits for roi in self._rois)  # metrics count in another thread

    @property
    def waiting(self) -> list[WaitingRoi]:
        """The waiting ROIs, in order of arrival."""
        self._rois = [roi for roi in self._rois if roi.waits]
        return self._rois

    @property
    def queue_s(self) -> float:
        """Seconds that a routine ROI with a late deadline would wait if it arrived now."""
        full, starts_s = self.timing.max_batch, self._starts_s()
        before_s = len(self) // full * self.timing.interval.estimate_s(full) / len(starts_s)
        return max(0.0, starts_s[0] - self._clock()) + before_s

    def admit(self, newcomers: Sequence[WaitingRoi]) -> None:
        """Check whether ``newcomers`` may wait; nothing that waits is given up for them.

        The newcomers are equal but for their numbers; none of them waits yet.

        Raises:
            Overloaded: there is no room for them, or the site has used up its share.
            DeadlineUnmeetable: an answer would be late, or make others late.
        """
        first, waiting = newcomers[0], self.waiting
        # even one that is refused: the others leave room for it from now on
        self._active[first.site] = self._came_s[first.is_stat] = now_s = self._clock()
        other, self._last_site = self._last_site not in ("", first.site), first.site
        self._changed_s = now_s if other else self._changed_s
        self._check_share(first, len(newcomers), waiting)
        self._check_places(first, len(newcomers), waiting)
        if first.is_probe:
            return
        # the queue is read in thought, with the newcomers: who would be late?
        late = self._late(waiting, newcomers)
        if own := [late[one][0] - now_s for one in newcomers if one in late]:
            ends = f"{max(0.0, first.deadline.at_s - now_s):.3f} s are left"
            raise DeadlineUnmeetable(f"an answer would take {own[0]:.3f} s, {ends}", own[0])
        # a newcomer does not count for those that would be late anyway, and may take the places
        # that the other priority leaves it
        anyway = self._late(waiting, ()) if late else {}
        for roi, (at_s, surely) in late.items():
            was_late, was_surely = roi in anyway, roi in anyway and anyway[roi][1]
            if surely > was_surely or (roi.is_stat is first.is_stat and not was_late):
                kept = f"a queued ROI would miss its deadline: it would take {at_s - now_s:.3f} s"
                raise DeadlineUnmeetable(kept)  # the bound is another ROI's

    def put(self, roi: WaitingRoi) -> None:
        """Add an ROI that was admitted."""
        if not self.waiting:
            self._virtual, self._finish = 0.0, {}
        self._tag([roi])
        self._finish[roi.site] = roi.start + 1.0 / self.rules.weight(roi.site)
        self._rois.append(roi)

    def take(self) -> list[WaitingRoi]:
        """Remove and return the next batch; empty if nothing waits any more.

        What can no longer be answered in time is dropped, with its error.
        """
        now_s, alone_s = self._clock(), self.timing.latency.bound_s(1)
        # what cannot be in time even in a batch of its own would only delay the others
        for roi in self.waiting:
            waited = f"after {now_s - roi.arrived_s:.3f} s in the queue"
            if (left_s := roi.deadline.remaining_s) <= 0.0:
                roi.result.set_exception(DeadlinePassed(f"the deadline passed {waited}"))
            elif left_s < alone_s and not roi.is_probe:
                late = f"{waited} {left_s:.3f} s are left; reading takes {alone_s:.3f} s"
                roi.result.set_exception(DeadlineUnmeetable(late, alone_s))
        # places in fair queueing go on from the last one that was read: time that a site was idle
        # earns no credit
        for roi, start in self._places(self.waiting).items():
            roi.start = start
        order = list(self.order(self.waiting, now_s))
        batch = order[: self.batch_size(order, now_s)]
        for roi in batch:
            self._virtual = max(self._virtual, roi.start)
            self._stats_in_a_row = self._stats_in_a_row + 1 if roi.is_stat else 0
        self._rois = [roi for roi in self._rois if roi not in set(batch)]
        return batch

    def order(
        self, rois: Sequence[WaitingRoi], start_s: float, each_s: float = 0.0
    ) -> Iterator[WaitingRoi]:
        """Yield ``rois`` in reading order; from ``start_s`` one is read every ``each_s``."""
        # within a priority: turns of fair queueing first, the earliest deadline in a turn
        turns = {roi: start // TURN for roi, start in self._places(rois).items()}
        stat, routine = (
            sorted((roi for roi in turns if roi.is_stat is is_stat), key=turns.__getitem__)
            for is_stat in (True, False)
        )
        # when the first of each tail of the routine ROIs is aged: an ROI whose turn is later counts
        # for those before it, since they stand between it and the model
        aged_s = list(itertools.accumulate((self._aged_s(r) for r in reversed(routine)), min))[::-1]
        # merge both: stat first, but after three stat ROIs in a row one routine ROI if some is aged
        i, row = 0, self._stats_in_a_row
        for at in range(len(rois)):
            due = at - i < len(routine) and aged_s[at - i] <= start_s + at * each_s
            if i < len(stat) and not (due and row >= STATS_PER_ROUTINE):
                yield stat[i]
                i, row = i + 1, row + 1
            else:
                yield routine[at - i]
                row = 0

    def _places(self, rois: Sequence[WaitingRoi]) -> dict[WaitingRoi, float]:
        """Return ROIs by deadline, with their places: a site's first is of its earliest deadline.

        Otherwise ROIs that have time to spare would keep a site's urgent ones out.
        """
        places = defaultdict[tuple[str, bool], list[float]](list)
        for roi in sorted(rois, key=lambda roi: -roi.start):
            places[roi.site, roi.is_stat].append(roi.start)
        by_deadline = sorted(rois, key=lambda roi: (roi.deadline.at_s, roi.number))
        return {roi: places[roi.site, roi.is_stat].pop() for roi in by_deadline}

    def batch_size(self, order: Sequence[WaitingRoi], start_s: float) -> int:
        """Return how many of the first ROIs to read at once: none is late because of the others.

        It is the efficient size. When two full batches wait it is larger, up to the full one, as
        long as a batch takes at most `BATCH_SHARE` of the shortest budget: what comes next and is
        urgent must not find the model busy for too long.
        """
        full, soonest_s = self.timing.max_batch, math.inf
        most = self.timing.interval.efficient_size(full)
        if len(order) >= 2 * full:
            limit_s = BATCH_SHARE * min(roi.deadline.at_s - roi.arrived_s for roi in order)
            fits = [n for n in range(full + 1) if self.timing.latency.bound_s(n) <= limit_s]
            most = max((most, *fits))  # none where the deadline has passed
        # one more ROI makes the whole batch later: stop before it makes the most urgent one late
        for n, roi in enumerate(order[:most]):
            soonest_s = min(soonest_s, roi.deadline.at_s)
            if n and start_s + self.timing.latency.bound_s(n + 1) > soonest_s:
                return n
        return min(most, len(order))

    def _check_places(self, first: WaitingRoi, count: int, waiting: Sequence[WaitingRoi]) -> None:
        """Raise `Overloaded` in a full queue, and beyond the places of a priority."""
        most = self.rules.max_queued
        own = sum(roi.is_stat is first.is_stat for roi in waiting)
        left = most // (1 + STATS_PER_ROUTINE) if self._is_expected(not first.is_stat) else 0
        others = max(len(waiting) - own, left)
        if own + others + count > most:
            full = f"the queue is full: {len(waiting)} ROIs wait, the limit is {most}"
            raise Overloaded(full, limit=most)

    def _is_expected(self, is_stat: bool) -> bool:
        """Return whether ROIs of a priority may come: some came within `EXPECTED_S`."""
        return self._clock() - self._came_s.get(is_stat, -math.inf) < EXPECTED_S

    def _check_share(self, first: WaitingRoi, count: int, waiting: Sequence[WaitingRoi]) -> None:
        """Raise `Overloaded` where ``count`` more would exceed the site's share."""
        now_s, rules = self._clock(), self.rules
        waits = Counter(roi.site for roi in waiting if roi.priority is first.priority)
        self._active = {s: at_s for s, at_s in self._active.items() if now_s - at_s < ACTIVE_S}
        # who is active: who waits, and who came a moment ago, refused or not
        sites, own = {*self._active, *waits}, waits[first.site] + count
        left_s = first.deadline.at_s - now_s
        share = rules.weight(first.site) / sum(map(rules.weight, sites))
        most = max(TURN, math.ceil(share * (waits.total() + count)))  # a study must not be cut
        # at its share of the speed the site's ROIs would still have time to spare
        places, time_s = SITE_SHARE * rules.max_queued, SITE_SHARE * share * left_s
        if len(sites) < 2:  # no other is active, but a turn of one that is known must find room
            if now_s - self._changed_s >= KNOWN_S:
                return
            # with the places that it leaves the other priority, each ROI takes longer
            left = LEFT[first.is_stat] if self._is_expected(not first.is_stat) else 0.0
            time_s = left_s / (1 + left) - 2 * self.timing.interval.estimate_s(int(TURN))
            places, most = rules.max_queued - TURN, TURN
        if own <= most or (own <= places and self.queue_s <= time_s):
            return
        text = f"site {first.site} has {own - count} of {waits.total()} queued ROIs; its share"
        text = f"{text} beside {len(sites) - 1} other active sites is {most:g}"
        # if several sites are beyond their shares, capacity lacks
        recent = {site: at for site, at in self._beyond_s.items() if now_s - at < ACTIVE_S}
        self._beyond_s = recent | {first.site: now_s}
        raise Overloaded(text, of_site=len(self._beyond_s) == 1)

    def _tag(self, rois: Sequence[WaitingRoi]) -> None:
        """Give the next ROIs of one site their places in fair queueing."""
        for i, roi in enumerate(rois):
            begin = max(self._virtual, self._finish.get(roi.site, 0.0))
            roi.start = begin + i / self.rules.weight(roi.site)

    def _late(
        self, waiting: Sequence[WaitingRoi], newcomers: Sequence[WaitingRoi]
    ) -> dict[WaitingRoi, tuple[float, bool]]:
        """Return the ROIs that would be late with these newcomers: when, and whether surely.

        Those that are not surely late would be late once the other priority takes its places.
        """
        # the clockwork of the model, run ahead: each batch goes to the instance that is free first,
        # and holds as many ROIs as `take` would put into it then
        self._tag(newcomers)
        full, starts_s = self.timing.max_batch, self._starts_s()
        each_s = self.timing.interval.estimate_s(full) / full / len(starts_s)
        order = list(self.order([*waiting, *newcomers], starts_s[0], each_s))
        late, at, before = dict[WaitingRoi, tuple[float, bool]](), 0, {True: 0, False: 0}
        alone_s = self.timing.latency.bound_s(1)
        while at < len(order):
            start_s = starts_s[0]
            if start_s + alone_s > order[at].deadline.at_s:  # it will not be read
                late[order[at]] = start_s + alone_s, True
                at += 1
                continue
            n = self.batch_size(order[at : at + 2 * full], start_s)
            answered_s = start_s + self.timing.latency.bound_s(n)
            for roi in order[at : at + n]:
                own, other = before[roi.is_stat], before[not roi.is_stat]
                to_come = LEFT[roi.is_stat] * own - other
                if not roi.is_stat and (own or other):
                    to_come = max(to_come, full)  # stat may move it into the next batch
                expected = self._is_expected(not roi.is_stat)
                at_s = answered_s + (max(0.0, to_come) * each_s if expected else 0.0)
                if at_s > roi.deadline.at_s:
                    late[roi] = at_s, answered_s > roi.deadline.at_s
                before[roi.is_stat] += 1
            heapq.heapreplace(starts_s, start_s + self.timing.interval.estimate_s(n))
            at += n
        return late

    def _starts_s(self) -> list[float]:
        """Return when each instance may start a batch, as a heap.

        An overrun so far is expected to double.
        """
        now_s, ends_s = self._clock(), self.busy_until_s.values()
        return sorted(now_s if math.isinf(at) else max(at, 2 * now_s - at) for at in ends_s)

    def _aged_s(self, roi: WaitingRoi) -> float:
        """Return when a routine ROI is aged."""
        half_s = (roi.deadline.at_s - roi.arrived_s) / 2
        return roi.arrived_s + min(ROUTINE_MAX_WAIT_S, half_s)
