"""The queue has so many places, and no site more than its share of them while others wait."""

from __future__ import annotations

from collections.abc import Callable

from cloud.queue import Claim, Queue
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
