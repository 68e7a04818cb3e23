"""Quotas: how much of the queue, and how many of the open streams, one site may hold."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator

from cloud.scheduling.entry import QueueEntry
from cloud.scheduling.queue import Queue
from protos.errors import Overloaded
from protos.messages import Priority


def preempt_for_quota(
    newcomer: QueueEntry, queue: Queue, most: int, now_s: float
) -> list[QueueEntry]:
    """Return the entries to preempt to make room for ``newcomer``; empty if there is room.

    The queue holds ``most`` entries.

    A site alone may fill the queue. While others wait its quota is its share times its weight, and
    another site may preempt its last routine ROI. Stat preempts the last routine ROI, of the same
    site if that has used up its quota. Stat is never preempted.

    Raises:
        Overloaded: the queue is full, or the site has used up its quota.
    """
    held, share = _held(queue), _site_share(queue, most)
    own, weight = held.pop(newcomer.site, 0), queue.rules.weight
    stat = queue.rules.by_deadline and newcomer.priority is Priority.STAT
    # the other site that holds most for its weight is preempted first
    by_weight = {site: n / weight(site) for site, n in held.items()}
    largest = max(by_weight, key=lambda site: by_weight[site], default=newcomer.site)
    preempted: list[QueueEntry] = []
    if held and own >= share * weight(newcomer.site):
        # over its quota: only stat is admitted, and preempts routine work of the same site
        if stat:
            preempted = _last_routine(queue, now_s, lambda one: one.site == newcomer.site)
        quota = math.ceil(share * weight(newcomer.site))
        reason = (
            f"site {newcomer.site} has {own} ROIs queued; its quota under contention is {quota}"
        )
    elif len(queue) < most:
        return []
    else:
        # full: anyone preempts a site over its quota, stat preempts any site
        if by_weight.get(largest, 0.0) > share:
            preempted = _last_routine(queue, now_s, lambda one: one.site == largest)
        elif stat:
            preempted = _last_routine(queue, now_s, lambda _: True)
        reason = f"the queue is full: {len(queue)} ROIs wait, the limit is {most}"
    if not preempted:
        raise Overloaded(reason)
    return preempted


def quota_left(newcomer: QueueEntry, queue: Queue, most: int) -> int:
    """Return how many ROIs like ``newcomer`` find room without preempting any."""
    # beside other sites the quota counts, alone only the size of the queue
    held, free = _held(queue), most - len(queue)
    own = held.pop(newcomer.site, 0)
    if held:
        quota = int(_site_share(queue, most) * queue.rules.weight(newcomer.site))
        free = min(free, quota - own)
    return max(0, free)


def _held(queue: Queue) -> Counter[str]:
    """Return what each site holds; empty where the queue has no quotas."""
    return queue.count_by_site() if queue.rules.by_deadline else Counter()


def _site_share(queue: Queue, most: int) -> int:
    return max(1, int(queue.rules.site_share * most))


def _last_routine(
    queue: Queue, now_s: float, may_give_way: Callable[[QueueEntry], bool]
) -> list[QueueEntry]:
    """Return the routine ROI that would be read last of those that may be preempted, or none."""
    order = queue.in_order(now_s)
    return [one for one in order if one.priority is not Priority.STAT and may_give_way(one)][-1:]


class StreamQuota:
    """The limit of open streams: ``most`` in all, and for each site under contention.

    Once half of all streams are open, no site may have more than ``site_share`` of ``most`` while
    another has any; stat may exceed that by the streams that are reserved for it.
    """

    def __init__(self, most: int, site_share: float) -> None:
        self._most, self._site_quota = most, max(1, int(site_share * most))
        self._reserved = int(0.1 * most)  # for stat studies, once all others are open
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def open_stream(self, site: str) -> Iterator[None]:
        """Count a stream of ``site`` as open while entered; `check_priority` follows its header.

        Raises:
            Overloaded: all streams are open, or the site has used up its quota and stat's reserve.
        """
        if (total := self._open.total()) >= self._most:
            raise Overloaded(f"{total} streams are open, the limit is {self._most}")
        if self._exceeds(site, self._site_quota + self._reserved):
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
        if self._open.total() > for_routine:
            raise Overloaded(
                f"{for_routine} streams are open, the last {self._reserved} are reserved for stat"
            )
        if self._exceeds(site, self._site_quota + 1):
            raise Overloaded(self._over_quota(site))

    def _exceeds(self, site: str, limit: int) -> bool:
        """Tell whether ``site`` has reached ``limit`` under contention with other sites."""
        # contention: others have streams open too, and half of all streams are open
        own, total = self._open[site], self._open.total()
        return own >= limit and total > own and 2 * total >= self._most

    def _over_quota(self, site: str) -> str:
        own, quota = self._open[site], self._site_quota
        return f"site {site} has {own} open streams; its quota under contention is {quota}"
