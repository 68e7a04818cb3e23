"""Quotas: how much of the queue and of the open streams one site may hold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from cloud.scheduling.queue import Claim, Queue
from protos.errors import Overloaded
from protos.messages import Priority


def make_room(newcomer: Claim, queue: Queue, most: int, now_s: float) -> list[Claim]:
    """Who has to leave for ``newcomer``: nobody, or the last of a site that holds too much.

    A site alone may fill the queue of ``most`` places; another that comes then gets its own. What
    a site may hold is its share times its weight. For stat the last routine ROI leaves, of its own
    site where that has its share; no stat leaves for routine work.

    Raises:
        Overloaded: the queue is full, or the newcomer's site has its share of it.
    """
    held, share = _held(queue), _share(queue, most)
    mine, weight = held.pop(newcomer.site, 0), queue.rules.weight
    stat = queue.rules.by_deadline and newcomer.priority is Priority.STAT
    full = (waiting := len(queue)) >= most
    over = {site: n / weight(site) for site, n in held.items()}
    greedy = max(over, key=lambda site: over[site], default=newcomer.site)
    leaving: list[Claim] = []
    if held and mine >= share * weight(newcomer.site):
        if stat:
            leaving = _last(queue, now_s, lambda one: one.site == newcomer.site)
        why = f"{mine} ROIs of {newcomer.site} wait, {share} may while others wait"
    elif not full:
        return []
    else:
        why = f"{waiting} ROIs wait, and no more than {most} may"
        if over.get(greedy, 0.0) > share:
            leaving = _last(queue, now_s, lambda one: one.site == greedy)
        elif stat:
            leaving = _last(queue, now_s, lambda _: True)
    if not leaving:
        raise Overloaded(why)
    return leaving


def places_for(newcomer: Claim, queue: Queue, most: int) -> int:
    """How many like ``newcomer`` have a place without anybody leaving."""
    held, free = _held(queue), most - len(queue)
    mine = held.pop(newcomer.site, 0)
    if held:
        allowed = int(_share(queue, most) * queue.rules.weight(newcomer.site))
        free = min(free, allowed - mine)
    return max(0, free)


def _held(queue: Queue) -> dict[str, int]:
    """What each site holds, where sites have shares."""
    return queue.held() if queue.rules.by_deadline else {}


def _share(queue: Queue, most: int) -> int:
    return max(1, int(queue.rules.site_share * most))


def _last(queue: Queue, now_s: float, among: Callable[[Claim], bool]) -> list[Claim]:
    """The routine ROI that would be read last of those ``among`` which one is to leave."""
    order = queue.in_order(now_s)
    may_leave = [one for one in order if one.priority is not Priority.STAT and among(one)]
    return may_leave[-1:]


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
