"""The queue has so many places, and no site more than its share of them while others wait."""

from __future__ import annotations

from cloud.queue import Claim, Queue
from protos.errors import Overloaded
from protos.messages import Priority


def make_room(newcomer: Claim, queue: Queue, most: int, now_s: float) -> list[Claim]:
    """Who has to leave for ``newcomer``: nobody, or the last of a site that holds too much.

    A site alone may fill the queue of ``most`` places; another that comes then gets its own. What
    a site may hold is its share over its weight; no stat leaves for routine work.

    Raises:
        Overloaded: the queue is full, or the newcomer's site has its share of it.
    """
    rules = queue.rules
    held = queue.held() if rules.by_deadline else {}
    share = max(1, int(rules.site_share * most))
    mine = held.pop(newcomer.site, 0)
    if held and mine >= share * rules.weight(newcomer.site):
        raise Overloaded(f"{mine} ROIs of {newcomer.site} wait, {share} may while others wait")
    if (waiting := len(queue)) < most:
        return []
    over = {site: n / rules.weight(site) for site, n in held.items()}
    greedy = max(over, key=lambda site: over[site], default=newcomer.site)
    if over.get(greedy, 0.0) <= share:
        raise Overloaded(f"{waiting} ROIs wait, and no more than {most} may")
    theirs = [claim for claim in queue.in_order(now_s) if claim.site == greedy]
    if newcomer.priority is not Priority.STAT:
        theirs = [claim for claim in theirs if claim.priority is not Priority.STAT]
    if not theirs:
        raise Overloaded(f"{waiting} ROIs wait, and no more than {most} may; what waits is stat")
    return theirs[-1:]
