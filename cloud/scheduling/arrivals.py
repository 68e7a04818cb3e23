"""What came of late, and what a site may have of the queue beside the others."""

import itertools
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import truediv

from cloud.limits import SITE_SHARE
from cloud.scheduling.cost import BatchTiming
from cloud.scheduling.waiting import WaitingRoi
from protos.deadline import Clock
from protos.errors import Overloaded

TURN = 8.0
"""ROIs of one turn of a site, divided by its weight."""

STATS_PER_ROUTINE = 3
"""Stat ROIs that are read before the next aged routine ROI, while both wait."""

RECENT_S, MIN_S = 30.0, 0.25
"""Stat is expected at its rate of the last half minute, or of the latest part of it with a higher
one: where it has just begun, the mean would let routine in that soon gives way."""

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


class Arrivals:
    """Which sites and priorities came of late, refused or not, and how much stat was admitted."""

    def __init__(self, rules: Rules, timing: BatchTiming, clock: Clock) -> None:
        self._rules, self._timing, self._clock = rules, timing, clock
        self._stats = deque[tuple[float, int]]()  # when stat came, and how many ROIs together
        self._active: dict[str, float] = {}  # when each site was last admitted or refused
        self._came_s: dict[bool, float] = {}  # when stat, and routine, was last
        self._beyond_s: dict[str, float] = {}  # when each site was last refused beyond its share
        self._last_site, self._changed_s = "", -math.inf  # and when the last was another one

    def note(self, roi: WaitingRoi) -> None:
        """Note one that came. The others leave room for it from now on, even if it is refused."""
        self._active[roi.site] = self._came_s[roi.is_stat] = now_s = self._clock()
        other, self._last_site = self._last_site not in ("", roi.site), roi.site
        self._changed_s = now_s if other else self._changed_s

    def note_stat(self, rois: int) -> None:
        """Note that so many stat ROIs were admitted together."""
        self._stats.append((self._clock(), rois))

    def places_left(self, *, to_stat: bool) -> int:
        """Return how many places are left to stat, or to routine, if it came of late: a quarter."""
        is_recent = self._clock() - self._came_s.get(to_stat, -math.inf) < RECENT_S
        return self._rules.max_queued // (1 + STATS_PER_ROUTINE) if is_recent else 0

    def stat_to_come(self, each_s: float) -> tuple[float, float]:
        """Return the part of the model that stat to come is expected to take, and its ROIs at once.

        The model reads one ROI every ``each_s``. The ROIs at once are the mean as an ROI sees it:
        the ratio of the second moment to the first.
        """
        now_s, came = self._clock(), self._stats
        while came and now_s - came[0][0] > RECENT_S:
            came.popleft()
        if not came:
            return 0.0, 0.0
        counts, sums = [n for _, n in came], itertools.accumulate([n for _, n in reversed(came)])
        since_s = [max(MIN_S, now_s - at_s) for at_s, _ in reversed(came)]
        per_s = max(map(truediv, sums, since_s))
        part = min(per_s * each_s, STATS_PER_ROUTINE / (1 + STATS_PER_ROUTINE))
        return part, sum([n * n for n in counts]) / sum(counts)

    def check_share(
        self, first: WaitingRoi, count: int, waits: Counter[str], wait_s: float, each_s: float
    ) -> None:
        """Check what the first of ``count`` ROIs asks for beside what ``waits`` of each site.

        The last would wait ``wait_s``; the model reads one every ``each_s``.

        Raises:
            Overloaded: ``count`` more would exceed the site's share.
        """
        now_s, rules, is_stat = self._clock(), self._rules, first.is_stat
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
            # beside the other priority each ROI takes longer
            part = 1.0 / (1 + STATS_PER_ROUTINE) if is_stat else self.stat_to_come(each_s)[0]
            batch_s = self._timing.latency.bound_s(self._timing.max_batch)  # until it is answered
            turn_s = self._timing.interval.estimate_s(int(TURN))
            time_s = left_s * (1.0 - part) - batch_s - 2 * turn_s
            places, most = rules.max_queued - TURN, TURN
        if own <= most or (own <= places and wait_s <= time_s):
            return
        text = f"site {first.site} has {own - count} of {waits.total()} queued ROIs; its share"
        text = f"{text} beside {len(sites) - 1} other active sites is {most:g}"
        # if several sites are beyond their shares, capacity lacks
        recent = {site: at for site, at in self._beyond_s.items() if now_s - at < ACTIVE_S}
        self._beyond_s = recent | {first.site: now_s}
        raise Overloaded(text, of_site=len(self._beyond_s) == 1)
