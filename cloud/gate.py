"""Who is let into the queue: what can be answered in time, of those that have a place.

It thinks ahead by what batches cost and by when the running one should end; `cloud.schedule` has
the rules, and `cloud.batching` reads what was let in.
"""

from __future__ import annotations

import math

from cloud.places import make_room, places_for
from cloud.queue import UNKNOWN_SITE, Claim, Queue, Ticket
from cloud.schedule import Pace, admit, admitted
from protos.deadline import Clock, Deadline
from protos.errors import DeadlineUnmeetable, Overloaded, OverreadError
from protos.messages import Priority

STALE_S = 5.0
"""After so long without a batch what was learnt of them may no longer hold."""


class Gate:
    """The way into ``queue``, which has ``places``.

    Attributes:
        free_s: when the next batch may start, by what is expected of the running one; minus
            infinity while none runs.
        read_at_s: when the last batch ended.
        under_way: batches that are being read.
    """

    def __init__(self, queue: Queue, pace: Pace, places: int, clock: Clock) -> None:
        self.free_s = self.read_at_s = -math.inf
        self.under_way = 0
        self._queue, self._pace, self._places, self._clock = queue, pace, places, clock
        self._by_deadline = queue.rules.by_deadline

    @property
    def queue_s(self) -> float:
        """How long a routine ROI that came now, with time to spare, would wait, in seconds."""
        full = self._pace.worth()
        before_s = len(self._queue) // full * self._pace.entrance.estimate_s(full)
        return max(0.0, self._start_s() - self._clock()) + before_s

    def check(
        self, deadline: Deadline, priority: Priority, site: str = UNKNOWN_SITE, rois: int = 1
    ) -> int:
        """How many of so many ROIs, one at least, could be answered in time if they came now.

        Raises:
            Overloaded: the queue is full, or the site has its share of it.
            DeadlineUnmeetable: the answer would come too late, or make others late.
        """
        now_s = self._clock()
        claims = [
            Claim(deadline=deadline, priority=priority, came_s=now_s, site=site)
            for _ in range(rois)
        ]
        self.room(claims[0])
        most = max(1, places_for(claims[0], self._queue, self._places))
        if rois == 1 or not self._by_deadline:
            return min(rois, most)
        return max(1, admitted(claims[:most], self._queue, self._start_s(), self._pace))

    def room(self, claim: Claim) -> list[tuple[Ticket, OverreadError]]:
        """Whom ``claim`` pushes out, and what they are told; raises as `check`."""
        told: dict[int, OverreadError] = {}
        gone = make_room(claim, self._queue, self._places, claim.came_s)
        for one in gone:
            told[one.number] = Overloaded(f"others wait too, and {one.site} had most places")
        if self._by_deadline and not self.tries(claim.deadline):
            for one, takes_s in admit(claim, self._queue, self._start_s(), self._pace, gone):
                told[one.number] = DeadlineUnmeetable(
                    f"behind what came since an answer would take {takes_s:.3f} s", takes_s
                )
        return [(one, told[one.number]) for one in self._queue.waiting() if one.number in told]

    def tries(self, deadline: Deadline) -> bool:
        """Whether an ROI is read whatever is expected of it: nothing waits, and nothing was read.

        Else a stall that taught to expect too much would keep out all that could teach otherwise.
        """
        idle = not self.under_way and self._clock() - self.read_at_s > STALE_S
        return idle and not len(self._queue) and not deadline.passed

    def _start_s(self) -> float:
        """When the next batch may start; a batch that overran takes as long again as it has."""
        now_s = self._clock()
        if math.isinf(self.free_s) or now_s <= self.free_s:
            return max(now_s, self.free_s)
        return now_s + (now_s - self.free_s)
