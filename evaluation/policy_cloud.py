"""The cloud of the simulation: one reader of learnt cost, its queue, and its batches.

It reads as `cloud.scheduling.batcher` does: in batches as large as company pays, each after the one before;
a region whose answer would come too late is never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloud.scheduling.cost import CostModel


@dataclass(frozen=True)
class Served:
    """One region as the cloud read it: when that was done, how long it waited and took."""

    done_s: float
    queue_s: float
    compute_s: float


class SimulatedCloud:
    """Serves one stream after another; time is what it is told.

    Args:
        batches: ``(regions, seconds)`` as measured, from which the cost t = a n + b is learnt.
        most: regions in a batch.
        max_wait_s: how long a region waits for company.
    """

    def __init__(self, batches: Sequence[tuple[int, float]], most: int, max_wait_s: float) -> None:
        self._cost, self._most, self._max_wait_s = CostModel(memory=1.0), most, max_wait_s
        for n, took_s in batches:
            self._cost.observe(n, took_s)
        self._free_s = -math.inf

    def queue_s(self, now_s: float) -> float:
        """How long what came now would wait."""
        return max(0.0, self._free_s - now_s)

    def read(self, came_s: Sequence[float], until_s: float) -> list[Served | None]:
        """What becomes of regions that came at these times, each after the one before.

        None is what could not be answered by ``until_s``; ``inf`` never came.
        """
        served: list[Served | None] = []
        waiting = [t for t in came_s if math.isfinite(t)]
        while len(served) < len(waiting):
            first = len(served)
            begin_s = self._begins_s(waiting[first:])
            n = sum(t <= begin_s for t in waiting[first : first + self._most])
            took_s = self._cost.estimate_s(n)
            if begin_s + took_s > until_s:
                served.append(None)
                continue
            self._free_s = begin_s + took_s
            batch = waiting[first : first + n]
            served += [Served(self._free_s, begin_s - t, took_s) for t in batch]
        return served + [None] * (len(came_s) - len(served))

    def _begins_s(self, waiting: Sequence[float]) -> float:
        """When the next batch begins: with enough company, or when its first has waited."""
        worth = self._cost.worth(self._most)
        company_s = waiting[worth - 1] if len(waiting) >= worth else math.inf
        return max(self._free_s, min(waiting[0] + self._max_wait_s, company_s))
