"""What waits to be read, and its order: rank, then fairness between sites, then deadlines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cloud.fairness import Service, fair
from imaging.volume import UInt8Array
from models.runtime.readings import Reading
from protos.deadline import Deadline
from protos.messages import Priority

UNKNOWN_SITE = "unknown"

STATS_A_ROUTINE = 3
"""While stat waits, aged routine work has one place after so many of stat."""


@dataclass(frozen=True)
class Rules:
    """How the queue is ordered.

    Attributes:
        by_deadline: the earliest deadline first; else first come, first served: no rule below
            counts, and what was let in is read though nobody waits for it any more.
        routine_wait_s: routine work is aged when it has waited so long, or half its budget.
        site_share: of the queue's places that one site may hold while others wait, in (0, 1].
        site_weights: what a site may have beside another of weight 1, by its name.
    """

    by_deadline: bool = True
    routine_wait_s: float = 1.0
    site_share: float = 0.5
    site_weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, site: str) -> float:
        """That of ``site``, 1 where none is given."""
        return self.site_weights.get(site, 1.0)


@dataclass(frozen=True)
class Answer:
    """What the model said of one ROI, and what it took.

    ``batch`` numbers the batch it was read in, which took ``compute_s``; it waited ``queue_s``.
    """

    reading: Reading
    queue_s: float
    compute_s: float
    batch: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Claim:
    """What an ROI's place in the queue follows from; it came at ``came_s`` on the clock."""

    deadline: Deadline
    priority: Priority
    came_s: float
    site: str = UNKNOWN_SITE
    number: int = field(default_factory=itertools.count().__next__)

    def aged_s(self, routine_wait_s: float) -> float:
        """From when on it has waited long: half of its budget, or ``routine_wait_s``."""
        return self.came_s + min(routine_wait_s, (self.deadline.at_s - self.came_s) / 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ticket(Claim):
    """One ROI in the queue: ``voxels`` uint8 ``(z, y, x)``.

    ``answer`` is what its owner waits for; cancelling it takes the ticket out of the queue.
    """

    voxels: UInt8Array
    answer: asyncio.Future[Answer]


class Queue:
    """Tickets in the order in which they will be read; given up ones do not count."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._tickets: list[Ticket] = []
        self._service = Service()

    def __len__(self) -> int:
        # changes nothing: metrics ask from another thread
        return sum(self._counts(ticket) for ticket in self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Lets ``ticket`` wait in its place."""
        self._forget()
        self._service.join(ticket.site, {waiting.site for waiting in self._tickets})
        self._tickets.append(ticket)

    def held(self) -> dict[str, int]:
        """How many tickets of each site wait."""
        self._forget()
        held: dict[str, int] = {}
        for ticket in self._tickets:
            held[ticket.site] = held.get(ticket.site, 0) + 1
        return held

    def in_order(self, now_s: float, newcomer: Claim | None = None) -> list[Claim]:
        """All that waits as it would be read from now on, with ``newcomer`` in its place."""
        self._forget()
        service, claims = self._service.copy(), list[Claim](self._tickets)
        if newcomer is not None:
            service.join(newcomer.site, {waiting.site for waiting in self._tickets})
            claims.append(newcomer)
        return list(self._walk(claims, service, now_s))

    def take(self, n: int, now_s: float) -> list[Ticket]:
        """The first ``n`` tickets or fewer, which no longer wait."""
        self._forget()
        tickets = {ticket.number: ticket for ticket in self._tickets}
        walk = self._walk(list(self._tickets), self._service, now_s)
        taken = [tickets[claim.number] for claim in itertools.islice(walk, n)]
        self.remove(taken)
        return taken

    def remove(self, tickets: list[Ticket]) -> None:
        """Lets ``tickets`` wait no longer."""
        gone = {ticket.number for ticket in tickets}
        self._tickets = [ticket for ticket in self._tickets if ticket.number not in gone]
        if not self._tickets:
            self._service.reset()

    def waiting(self) -> list[Ticket]:
        """All that waits, as it came."""
        self._forget()
        return list(self._tickets)

    def _walk(self, claims: list[Claim], service: Service, now_s: float) -> Iterator[Claim]:
        """``claims`` in order; ``service`` is told of each before it is given."""
        if not self.rules.by_deadline:
            yield from sorted(claims, key=lambda claim: claim.number)
            return
        stat = [claim for claim in claims if claim.priority is Priority.STAT]
        routine = [claim for claim in claims if claim.priority is not Priority.STAT]
        wait_s = self.rules.routine_wait_s
        aged = fair([c for c in routine if c.aged_s(wait_s) <= now_s], service, self.rules.weight)
        given: set[int] = set()
        urgent = fair(stat, service, self.rules.weight)
        for _ in stat:
            if service.stats >= STATS_A_ROUTINE and (late := next(aged, None)) is not None:
                service.stats = 0
                given.add(late.number)
                yield late
            claim = next(urgent)
            service.stats += 1
            yield claim
        rest = [claim for claim in routine if claim.number not in given]
        for claim in fair(rest, service, self.rules.weight):
            service.stats = 0
            yield claim

    def _forget(self) -> None:
        self._tickets = [ticket for ticket in self._tickets if self._counts(ticket)]

    def _counts(self, ticket: Ticket) -> bool:
        return not self.rules.by_deadline or not ticket.answer.done()
