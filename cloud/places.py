"""The queue has so many places, and no site more than its share of them while others wait."""

from __future__ import annotations

from cloud.queue import Claim, Queue
from protos.errors import Overloaded


def make_room(newcomer: Claim, queue: Queue, most: int, now_s: float) -> list[Claim]:
    """Who has to leave for ``newcomer``: nobody, or the last of a site that holds too much.

    A site alone may fill the queue of ``most`` places; another that comes then gets its own.

    Raises:
        Overloaded: the queue is full, or the newcomer's site has its share of it.
    """
    held = queue.held() if queue.rules.by_deadline else {}
    share = max(1, int(queue.rules.site_share * most))
    mine = held.pop(newcomer.site, 0)
    if held and mine >= share:
        raise Overloaded(f"{mine} ROIs of {newcomer.site} wait, {share} may while others wait")
    if (waiting := len(queue)) < most:
        return []
    greedy = max(held, key=lambda site: held[site], default=newcomer.site)
    if held.get(greedy, 0) <= share:
        raise Overloaded(f"{waiting} ROIs wait, and no more than {most} may")
    theirs = [claim for claim in queue.in_order(now_s) if claim.site == greedy]
    return theirs[-1:]
