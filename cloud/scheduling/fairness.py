"""Fair sharing of the model between sites, weighted, and by deadline within a bound.

Start-time fair queueing (Goyal et al., SIGCOMM 1996) with a bounded lead instead of strict turns:
a site may be at most `MAX_LEAD` ahead of any waiting site. Within that bound the earliest
deadline is read first, whichever site sent it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

from cloud.scheduling.entry import QueueEntry

MAX_LEAD = 8.0
"""Largest lead of one site over a waiting site, in ROIs divided by the site's weight."""


@dataclass
class SiteUsage:
    """What each site was served since the queue was last empty: ROIs divided by its weight.

    ``stats_in_a_row`` counts the stat ROIs read since the last routine one.
    """

    by_site: dict[str, float] = field(default_factory=dict)
    stats_in_a_row: int = 0

    def join(self, site: str, waiting: set[str]) -> None:
        """Add a site at the least usage of those ``waiting``, so that idle time earns no credit."""
        if site not in waiting:
            least = min((self.by_site.get(other, 0.0) for other in waiting), default=0.0)
            self.by_site[site] = max(self.by_site.get(site, 0.0), least)

    def charge(self, site: str, weight: float) -> None:
        """Count one ROI of ``site`` as read."""
        self.by_site[site] = self.by_site.get(site, 0.0) + 1.0 / weight


def fair_order(
    entries: list[QueueEntry], usage: SiteUsage, weight: Callable[[str], float]
) -> Iterator[QueueEntry]:
    """Yield ``entries`` in fair order; ``usage`` is charged for each before it is yielded."""
    by_site: dict[str, list[QueueEntry]] = {}
    urgent_last = sorted(entries, key=_urgency, reverse=True)
    for entry in urgent_last:
        by_site.setdefault(entry.site, []).append(entry)
    # the usual case, one site or few ROIs: no site can exceed the lead, deadlines decide alone
    if _all_within_lead(Counter(entry.site for entry in entries), usage.by_site, weight):
        for entry in reversed(urgent_last):
            usage.charge(entry.site, weight(entry.site))
            yield entry
        return
    selector = _SiteSelector(by_site, usage.by_site)
    while (site := selector.pop()) is not None:
        entry = by_site[site].pop()
        if not by_site[site]:
            del by_site[site]
        usage.charge(site, weight(site))
        selector.push(site)
        yield entry


class _SiteSelector:
    """Selects the site to read next.

    ``entries`` holds the waiting entries of each site, the most urgent last.

    Heaps, since many sites may wait: one of all sites by usage, one of the sites within the lead
    by urgency, one of those ahead by usage. The other priority lane changes the usage of the same
    sites meanwhile, so the usage of a site is checked again when it comes to the top.
    """

    def __init__(self, entries: Mapping[str, list[QueueEntry]], usage: Mapping[str, float]) -> None:
        self._entries, self._usage = entries, usage
        self._by_usage = [(usage.get(site, 0.0), site) for site in entries]
        heapify(self._by_usage)
        # every site begins as "ahead"; `pop` moves it over once it is known to be within the lead
        self._ahead, self._within = list(self._by_usage), list[tuple[tuple[float, int], str]]()

    def pop(self) -> str | None:
        """Return the site within the lead whose entry is most urgent; None when nothing waits."""
        if not self._entries:
            return None
        limit = self._least_usage() + MAX_LEAD
        while True:
            # the least usage only grows: sites that were too far ahead come within the lead
            while self._ahead and self._ahead[0][0] < limit:
                self._sort_in(heappop(self._ahead)[1], limit)
            site = heappop(self._within)[1]
            if self._usage.get(site, 0.0) < limit:
                return site
            # the other lane served this site since it was sorted in: it is ahead again
            heappush(self._ahead, (self._usage[site], site))

    def push(self, site: str) -> None:
        """Return a site that was served, if more of it waits."""
        if site in self._entries:
            heappush(self._ahead, (self._usage[site], site))

    def _least_usage(self) -> float:
        """Return the least usage of all sites that wait."""
        while True:
            # the top is out of date if its site has nothing left, or was served since
            seen, site = self._by_usage[0]
            if site not in self._entries:
                heappop(self._by_usage)
            elif (usage := self._usage.get(site, 0.0)) != seen:
                heapreplace(self._by_usage, (usage, site))
            else:
                return seen

    def _sort_in(self, site: str, limit: float) -> None:
        if (usage := self._usage.get(site, 0.0)) < limit:
            heappush(self._within, (_urgency(self._entries[site][-1]), site))
        else:
            heappush(self._ahead, (usage, site))


def _all_within_lead(
    counts: Mapping[str, int], usage: Mapping[str, float], weight: Callable[[str], float]
) -> bool:
    """Tell whether no site could exceed the lead even if all of its ROIs were read first."""
    if len(counts) < 2:
        return True
    most = max(usage.get(site, 0.0) + count / weight(site) for site, count in counts.items())
    return most <= min(usage.get(site, 0.0) for site in counts) + MAX_LEAD


def _urgency(entry: QueueEntry) -> tuple[float, int]:
    return entry.deadline.at_s, entry.number
