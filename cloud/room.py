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

    Once half of them are taken no site may have more than ``site_share`` of all. Whether an ROI
    can be answered in time is not asked here: it is when it comes.
    """

    def __init__(self, most: int, site_share: float) -> None:
        self._most, self._share = most, max(1, int(site_share * most))
        self._for_all = most - int(STAT_SHARE * most)
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, site: str) -> Iterator[None]:
        """A place for a stream of ``site`` while entered.

        Raises:
            Overloaded: there is none, or the site has its share.
        """
        taken = self._taken.total()
        if taken >= self._most:
            raise Overloaded(f"{self._most} studies are open, and no more may be")
        if 2 * taken >= self._most and self._taken[site] >= self._share:
            raise Overloaded(
                f"{self._taken[site]} studies of {site} are open, {self._share} may be of {taken}"
            )
        self._taken[site] += 1
        try:
            yield
        finally:
            self._taken -= Counter((site,))

    def check_priority(self, priority: Priority) -> None:
        """Refuses a stream that has one of the last places, if it is not stat.

        Raises:
            Overloaded: so it is.
        """
        if priority is not Priority.STAT and self._taken.total() > self._for_all:
            raise Overloaded(
                f"{self._for_all} studies are open, the last {self._most - self._for_all} places "
                "are for stat"
            )
