"""How many studies may be open at once: in all, of one site, and of those that are not stat."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from protos.errors import Overloaded
from protos.messages import Priority

STAT_SHARE = 0.1
"""Of all places, the last that only stat may have."""


class Room:
    """Places for ``most`` streams.

    Once half of them are taken no site may have more than ``site_share`` of all while others have
    any, but for stat. Whether an ROI can be answered in time is asked when it comes.
    """

    def __init__(self, most: int, site_share: float) -> None:
        self._most, self._share = most, max(1, int(site_share * most))
        self._for_stat = int(STAT_SHARE * most)
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, site: str) -> Iterator[None]:
        """A place for a stream of ``site`` while entered; `check` it when its header is there.

        Raises:
            Overloaded: there is none, or the site has its share and what is for stat as well.
        """
        if (taken := self._taken.total()) >= self._most:
            raise Overloaded(f"{self._most} studies are open, and no more may be")
        if self._crowds(site, taken, self._share + self._for_stat):
            raise Overloaded(self._too_many(site))
        self._taken[site] += 1
        try:
            yield
        finally:
            self._taken -= Counter((site,))

    def check(self, site: str, priority: Priority) -> None:
        """Refuses a stream that has a place of stat's, or of others', if it is not stat.

        Raises:
            Overloaded: so it is.
        """
        if priority is Priority.STAT:
            return
        taken, for_all = self._taken.total(), self._most - self._for_stat
        if taken > for_all:
            raise Overloaded(
                f"{for_all} studies are open, the last {self._for_stat} places are for stat"
            )
        if self._crowds(site, taken, self._share + 1):
            raise Overloaded(self._too_many(site))

    def _crowds(self, site: str, taken: int, most: int) -> bool:
        """Whether ``site`` has so many while others are there, and half of all are taken."""
        mine = self._taken[site]
        return mine >= most and taken > mine and 2 * taken >= self._most

    def _too_many(self, site: str) -> str:
        return f"{self._taken[site]} studies of {site} are open, {self._share} may while others are"
