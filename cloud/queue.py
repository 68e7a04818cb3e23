"""What waits to be read: the urgent first, among equals the earliest deadline first."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from dataclasses import dataclass, field

from imaging.volume import UInt8Array
from protos.deadline import Deadline
from protos.messages import Priority

Order = tuple[int, float, float]

_RANK = {Priority.STAT: 0, Priority.ROUTINE: 1}


def standing(priority: Priority, deadline: Deadline, number: float = math.inf) -> Order:
    """Where a ticket stands in the queue, smaller is earlier; by default behind all its equals."""
    return _RANK[priority], deadline.at_s, number


@dataclass(frozen=True)
class Answer:
    """What the model said of one ROI, and what it took.

    ``batch`` numbers the batch it was read in, which took ``compute_s``; it waited ``queue_s``.
    """

    probability: float
    diameter_mm: float
    queue_s: float
    compute_s: float
    batch: int


@dataclass(frozen=True, eq=False)
class Ticket:
    """One ROI in the queue: ``voxels`` uint8 ``(z, y, x)``, since ``came_s`` on the clock.

    ``answer`` is what its owner waits for; cancelling it takes the ticket out of the queue.
    """

    voxels: UInt8Array
    deadline: Deadline
    priority: Priority
    came_s: float
    answer: asyncio.Future[Answer]
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def order(self) -> Order:
        """Where it stands in the queue; see `standing`."""
        return standing(self.priority, self.deadline, self.number)


class Queue:
    """Tickets in the order in which they will be read; given up ones do not count."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        # changes nothing: metrics ask from another thread
        return sum(not ticket.answer.done() for ticket in self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Lets ``ticket`` wait in its place."""
        bisect.insort(self._tickets, ticket, key=lambda waiting: waiting.order)

    def ahead_of(self, order: Order) -> int:
        """How many tickets would be read before one that stood at ``order``."""
        self._forget()
        return bisect.bisect_left(self._tickets, order, key=lambda waiting: waiting.order)

    def first(self) -> Ticket | None:
        """The ticket that is read next, if any waits."""
        self._forget()
        return self._tickets[0] if self._tickets else None

    def take(self, n: int) -> list[Ticket]:
        """The first ``n`` tickets or fewer, which no longer wait."""
        self._forget()
        taken, self._tickets = self._tickets[:n], self._tickets[n:]
        return taken

    def take_expired(self) -> list[Ticket]:
        """The tickets whose deadline has passed, which no longer wait."""
        self._forget()
        expired = [ticket for ticket in self._tickets if ticket.deadline.passed]
        self._tickets = [ticket for ticket in self._tickets if not ticket.deadline.passed]
        return expired

    def _forget(self) -> None:
        self._tickets = [ticket for ticket in self._tickets if not ticket.answer.done()]
