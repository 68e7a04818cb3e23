"""Sites share the model: none gets far ahead of another that waits, weights considered.

Within that bound the earliest deadline is first, whosever it is. It is start-time fair queueing
(Goyal et al., SIGCOMM 1996) with a lead instead of strict turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol, TypeVar

from protos.deadline import Deadline

LEAD = 8.0
"""How many ROIs, each over its site's weight, a site may be ahead of one that waits."""


class Placed(Protocol):
    """What has a deadline, a site, and a number that tells who came first."""

    @property
    def deadline(self) -> Deadline:
        """When it is due."""

    @property
    def site(self) -> str:
        """Whose it is."""

    @property
    def number(self) -> int:
        """Smaller came earlier."""


OnePlaced = TypeVar("OnePlaced", bound=Placed)


@dataclass
class Service:
    """What sites got since something last waited: ROIs over weight, ``by_site``.

    ``stats`` counts the stat ROIs since the last routine one.
    """

    by_site: dict[str, float] = field(default_factory=dict)
    stats: int = 0

    def copy(self) -> Service:
        """One to think ahead with."""
        return Service(dict(self.by_site), self.stats)

    def join(self, site: str, waiting: set[str]) -> None:
        """Lets ``site`` begin to wait beside others: what it did not use before is no credit."""
        if site not in waiting:
            least = min((self.by_site.get(other, 0.0) for other in waiting), default=0.0)
            self.by_site[site] = max(self.by_site.get(site, 0.0), least)

    def reset(self) -> None:
        """Forgets all, when nothing waits any more."""
        self.by_site.clear()
        self.stats = 0


def fair(
    claims: list[OnePlaced], service: Service, weight: Callable[[str], float]
) -> Iterator[OnePlaced]:
    """The claims in turn; ``service`` is told of each before it is given."""
    heads: dict[str, list[OnePlaced]] = {}
    urgent_last = sorted(claims, key=_urgency, reverse=True)
    for claim in urgent_last:
        heads.setdefault(claim.site, []).append(claim)
    got = service.by_site
    if _all_within_lead({site: len(them) for site, them in heads.items()}, got, weight):
        for claim in reversed(urgent_last):
            got[claim.site] = got.get(claim.site, 0.0) + 1.0 / weight(claim.site)
            yield claim
        return
    turns = _Turns(heads, got)
    while (site := turns.next()) is not None:
        claim = heads[site].pop()
        if not heads[site]:
            del heads[site]
        got[site] = got.get(site, 0.0) + 1.0 / weight(site)
        turns.back(site)
        yield claim


class _Turns:
    """Whose turn it is, of the sites in ``heads``, each with its claims, the urgent last.

    Heaps, for many sites may wait: all sites by what they got; those within the lead by urgency;
    the others by what they got. Others serve the same sites meanwhile: what an entry says a site
    got is looked at again when it comes up.
    """

    def __init__(self, heads: Mapping[str, list[OnePlaced]], got: Mapping[str, float]) -> None:
        self._heads, self._got = heads, got
        self._by_got = [(got.get(site, 0.0), site) for site in heads]
        heapify(self._by_got)
        self._ahead, self._allowed = list(self._by_got), list[tuple[tuple[float, int], str]]()

    def next(self) -> str | None:
        """The site with the most urgent claim of those that are not too far ahead; None at last."""
        if not self._heads:
            return None
        limit = self._least() + LEAD
        while True:
            while self._ahead and self._ahead[0][0] < limit:
                self._sort(heappop(self._ahead)[1], limit)
            site = heappop(self._allowed)[1]
            if self._got.get(site, 0.0) < limit:
                return site
            heappush(self._ahead, (self._got[site], site))

    def back(self, site: str) -> None:
        """That site has had its turn; where it still waits it may have another."""
        if site in self._heads:
            heappush(self._ahead, (self._got[site], site))

    def _least(self) -> float:
        """What the site got that got least of all that wait."""
        while True:
            told, site = self._by_got[0]
            if site not in self._heads:
                heappop(self._by_got)
            elif (got := self._got.get(site, 0.0)) != told:
                heapreplace(self._by_got, (got, site))
            else:
                return told

    def _sort(self, site: str, limit: float) -> None:
        """Among those within the lead, or among the others."""
        if (got := self._got.get(site, 0.0)) < limit:
            heappush(self._allowed, (_urgency(self._heads[site][-1]), site))
        else:
            heappush(self._ahead, (got, site))


def _all_within_lead(
    counts: dict[str, int], got: dict[str, float], weight: Callable[[str], float]
) -> bool:
    """Whether nobody can get too far ahead: one site alone, or few ROIs of each, as is usual."""
    if len(counts) < 2:
        return True
    most = max(got.get(site, 0.0) + count / weight(site) for site, count in counts.items())
    return most <= min(got.get(site, 0.0) for site in counts) + LEAD


def _urgency(claim: Placed) -> tuple[float, int]:
    return claim.deadline.at_s, claim.number
