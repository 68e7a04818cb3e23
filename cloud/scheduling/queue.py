"""The queue of ROIs, in reading order: stat first, then fair between sites, then by deadline."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloud.scheduling.entry import QueuedRoi, QueueEntry
from cloud.scheduling.fairness import SiteUsage, fair_order
from protos.messages import Priority

STATS_PER_ROUTINE = 3
"""Stat ROIs that are read before the next aged routine ROI, while both wait."""


@dataclass(frozen=True)
class QueueRules:
    """How the queue is ordered and shared.

    Attributes:
        by_deadline: earliest deadline first. Otherwise first come, first served: no other rule
            applies, and every admitted ROI is read, even after its caller has disconnected.
        routine_max_wait_s: a routine ROI is aged after this wait, or after half of its budget if
            that is shorter.
        site_share: fraction of the queue that one site may hold while others wait, in (0, 1].
        site_weights: the weight of each named site in shares and turns; others have weight 1.
    """

    by_deadline: bool = True
    routine_max_wait_s: float = 1.0
    site_share: float = 0.5
    site_weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, site: str) -> float:
        """Return the weight of ``site``, 1 where none is set."""
        return self.site_weights.get(site, 1.0)


class Queue:
    """Waiting ROIs in the order in which they will be read; cancelled ones do not count."""

    def __init__(self, rules: QueueRules | None = None) -> None:
        self.rules = rules or QueueRules()
        self._rois: list[QueuedRoi] = []
        self._usage = SiteUsage()

    def __len__(self) -> int:
        # must change nothing: metrics are collected in another thread
        return sum(self._counts(roi) for roi in self._rois)

    def put(self, roi: QueuedRoi) -> None:
        """Add ``roi`` to the queue."""
        self._drop_cancelled()
        if not self._rois:
            self._usage = SiteUsage()
        self._usage.join(roi.site, {waiting.site for waiting in self._rois})
        self._rois.append(roi)

    def count_by_site(self) -> Counter[str]:
        """Return the number of waiting ROIs of each site."""
        return Counter(roi.site for roi in self.waiting())

    def in_order(
        self,
        start_s: float,
        newcomers: Sequence[QueueEntry] = (),
        *,
        interval_s: float = 0.0,
        without: Collection[QueueEntry] = (),
    ) -> list[QueueEntry]:
        """Return the queue in reading order; from ``start_s``, ``interval_s`` are between two ROIs.

        ``newcomers``, all of one site, are included as if they waited; ``without`` are excluded.
        """
        self._drop_cancelled()
        usage = replace(self._usage, by_site=dict(self._usage.by_site))  # to plan ahead
        entries: list[QueueEntry] = [one for one in self._rois if one not in without]
        if newcomers:
            usage.join(newcomers[0].site, {waiting.site for waiting in entries})
            entries += newcomers
        return list(self._ordered(entries, usage, start_s, interval_s))

    def take(self, n: int, now_s: float) -> list[QueuedRoi]:
        """Remove and return the first ``n`` ROIs, or fewer."""
        self._drop_cancelled()
        rois = {roi.number: roi for roi in self._rois}
        order = self._ordered(list(self._rois), self._usage, now_s, 0.0)
        taken = [rois[entry.number] for entry in itertools.islice(order, n)]
        self.remove(taken)
        return taken

    def remove(self, rois: list[QueuedRoi]) -> None:
        """Take ``rois`` out of the queue."""
        gone = {roi.number for roi in rois}
        self._rois = [roi for roi in self._rois if roi.number not in gone]
        if not self._rois:
            self._usage = SiteUsage()

    def waiting(self) -> list[QueuedRoi]:
        """Return the waiting ROIs, in order of arrival."""
        self._drop_cancelled()
        return list(self._rois)

    def _ordered(
        self, entries: list[QueueEntry], usage: SiteUsage, start_s: float, interval_s: float
    ) -> Iterator[QueueEntry]:
        """Yield ``entries`` in reading order; ``usage`` is updated before each is yielded."""
        if not self.rules.by_deadline:
            yield from sorted(entries, key=lambda entry: entry.number)
            return
        # two lanes, each fair between sites; both charge the same usage
        stat = [entry for entry in entries if entry.priority is Priority.STAT]
        routine = [entry for entry in entries if entry.priority is not Priority.STAT]
        stat_lane, routine_lane = (
            fair_order(lane, usage, self.rules.weight) for lane in (stat, routine)
        )
        aging = sorted(
            (entry.aged_at_s(self.rules.routine_max_wait_s), entry.number) for entry in routine
        )
        read: set[int] = set()  # the numbers of routine entries already yielded
        for position in range(len(entries)):
            # a routine ROI counts as aged by the time at which this position would be read
            while aging and aging[0][1] in read:
                aging.pop(0)
            some_aged = bool(aging) and aging[0][0] <= start_s + position * interval_s
            # stat goes first, except that after three in a row an aged routine ROI is due; the
            # routine lane still gives its most urgent, which need not be the aged one
            stat_left = position - len(read) < len(stat)
            if stat_left and not (some_aged and usage.stats_in_a_row >= STATS_PER_ROUTINE):
                entry = next(stat_lane)
                usage.stats_in_a_row += 1
            else:
                entry = next(routine_lane)
                usage.stats_in_a_row = 0
                read.add(entry.number)
            yield entry

    def _drop_cancelled(self) -> None:
        self._rois = [roi for roi in self._rois if self._counts(roi)]

    def _counts(self, roi: QueuedRoi) -> bool:
        return not self.rules.by_deadline or not roi.result.done()
