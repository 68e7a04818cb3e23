"""What waits to be read, and its order: rank, then fairness between sites, then deadlines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cloud.scheduling.fairness import Service, fair
from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos.deadline import Deadline
from protos.messages import Priority

UNKNOWN_SITE = "unknown"

STATS_A_ROUTINE = 3
"""While stat waits and some routine work is aged, routine has one place after so many of stat."""


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

    ``answer`` is what its owner waits for; cancelling it takes the ticket out of the queue. What is
    ``tried`` is read though it should come too late by what is known.
    """

    voxels: UInt8Array
    answer: asyncio.Future[Answer]
    tried: bool = False


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
        if not self._tickets:
            self._service.reset()
        self._service.join(ticket.site, {waiting.site for waiting in self._tickets})
        self._tickets.append(ticket)

    def held(self) -> dict[str, int]:
        """How many tickets of each site wait."""
        self._forget()
        held: dict[str, int] = {}
        for ticket in self._tickets:
            held[ticket.site] = held.get(ticket.site, 0) + 1
        return held

    def in_order(
        self,
        start_s: float,
        newcomers: Sequence[Claim] = (),
        *,
        each_s: float = 0.0,
        without: Collection[Claim] = (),
    ) -> list[Claim]:
        """All that waits as it would be read from ``start_s`` on, ``each_s`` after one another.

        ``newcomers``, all of one site, are in their places, and those of ``without`` are gone.
        """
        self._forget()
        service = self._service.copy()
        claims: list[Claim] = [one for one in self._tickets if one not in without]
        if newcomers:
            service.join(newcomers[0].site, {waiting.site for waiting in claims})
            claims += newcomers
        return list(self._walk(claims, service, start_s, each_s))

    def take(self, n: int, now_s: float) -> list[Ticket]:
        """The first ``n`` tickets or fewer, which no longer wait."""
        self._forget()
        tickets = {ticket.number: ticket for ticket in self._tickets}
        walk = self._walk(list(self._tickets), self._service, now_s, 0.0)
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

    def _walk(
        self, claims: list[Claim], service: Service, start_s: float, each_s: float
    ) -> Iterator[Claim]:
        """``claims`` in order; ``service`` is told of each before it is given.

        Whether routine work has waited long is asked of the time at which a place is read.
        """
        if not self.rules.by_deadline:
            yield from sorted(claims, key=lambda claim: claim.number)
            return
        stat = [claim for claim in claims if claim.priority is Priority.STAT]
        routine = [claim for claim in claims if claim.priority is not Priority.STAT]
        urgent, usual = (fair(ones, service, self.rules.weight) for ones in (stat, routine))
        aged_s = sorted(
            (claim.aged_s(self.rules.routine_wait_s), claim.number) for claim in routine
        )
        given: set[int] = set()
        for place in range(len(claims)):
            while aged_s and aged_s[0][1] in given:
                aged_s.pop(0)
            due = bool(aged_s) and aged_s[0][0] <= start_s + place * each_s
            if place - len(given) < len(stat) and not (due and service.stats >= STATS_A_ROUTINE):
                claim = next(urgent)
                service.stats += 1
            else:
                claim = next(usual)
                service.stats = 0
                given.add(claim.number)
            yield claim

    def _forget(self) -> None:
        self._tickets = [ticket for ticket in self._tickets if self._counts(ticket)]

    def _counts(self, ticket: Ticket) -> bool:
        return not self.rules.by_deadline or not ticket.answer.done()
