"""Which ROIs are read together, and when each would be answered: all by estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloud.scheduling.cost import CostModel
from cloud.scheduling.queue import Claim


@dataclass(frozen=True)
class Pace:
    """How a stage keeps time, learnt.

    ``answer`` is from a batch's start to its answer, ``entrance`` from its start until the next
    may start: the same where a stage is one, less where it is a pipeline. No batch has more than
    ``most`` ROIs.
    """

    answer: CostModel
    entrance: CostModel
    most: int

    def worth(self) -> int:
        """The batch beyond which company saves hardly anything."""
        return self.entrance.worth(self.most)


def together(claims: Sequence[Claim], start_s: float, pace: Pace) -> int:
    """How many of the first ``claims``, one at least, are worth reading at once from ``start_s``.

    None of them misses its deadline for the company it has.
    """
    soonest_s, n = claims[0].deadline.at_s, 1
    most = min(pace.worth(), len(claims))
    while n < most:
        soonest_s = min(soonest_s, claims[n].deadline.at_s)
        if start_s + pace.answer.bound_s(n + 1) > soonest_s:
            break
        n += 1
    return n


class Slot(NamedTuple):
    """When a claim would be read, and answered, on the clock."""

    start_s: float
    answered_s: float


def foresee(claims: Sequence[Claim], free_s: float, pace: Pace) -> list[Slot]:
    """The slot of each of ``claims``, in order, if batches start from ``free_s`` on.

    What is late whatever is done costs the others nothing: it will not be read.
    """
    slots: list[Slot] = []
    start_s, alone_s = free_s, pace.answer.bound_s(1)
    while (at := len(slots)) < len(claims):
        if start_s + alone_s > claims[at].deadline.at_s:
            slots.append(Slot(start_s, start_s + alone_s))
            continue
        n = together(claims[at : at + pace.most], start_s, pace)
        slots += [Slot(start_s, start_s + pace.answer.bound_s(n))] * n
        start_s += pace.entrance.estimate_s(n)
    return slots
