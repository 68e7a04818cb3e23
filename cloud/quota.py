"""The limit of open streams: in all, and for each site."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from cloud.limits import SITE_SHARE
from protos.errors import Overloaded
from protos.messages import Priority

STAT_RESERVE = 0.1
"""Part of the open streams that is for stat alone."""


class StreamQuota:
    """The limit of open streams: ``most`` in all, and the part `SITE_SHARE` of it for each site.

    The last of all are for stat studies (`STAT_RESERVE`), and a site may exceed its part by these.
    """

    def __init__(self, most: int) -> None:
        self._most, self._site_quota = most, max(1, int(SITE_SHARE * most))
        self._reserved = int(STAT_RESERVE * most)
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many streams are open, studies and inference requests together."""
        return self._open.total()

    @contextlib.contextmanager
    def open_stream(self, site: str) -> Iterator[None]:
        """Count a stream of ``site`` as open while entered; `check_priority` follows its header.

        Raises:
            Overloaded: all streams are open, or the site has used up its quota and stat's reserve.
        """
        if (total := self.open) >= self._most:
            full = f"{total} streams are open, the limit is {self._most}"
            raise Overloaded(full, limit=self._most)
        if self._open[site] >= self._site_quota + self._reserved:
            raise Overloaded(self._over_quota(site))
        self._open[site] += 1
        try:
            yield
        finally:
            self._open -= Counter((site,))

    def check_priority(self, site: str, priority: Priority) -> None:
        """Reject an open stream that is not stat and uses stat's reserve, or another site's quota.

        Raises:
            Overloaded: the stream is rejected.
        """
        if priority is Priority.STAT:
            return
        for_routine = self._most - self._reserved
        if self.open > for_routine:
            raise Overloaded(
                f"{for_routine} streams are open, the last {self._reserved} are reserved for stat"
            )
        if self._open[site] > self._site_quota:
            raise Overloaded(self._over_quota(site))

    def _over_quota(self, site: str) -> str:
        return f"site {site} has {self._open[site]} open streams; its quota is {self._site_quota}"
