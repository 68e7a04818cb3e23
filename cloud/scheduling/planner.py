"""The forecast: which ROIs form a batch together, and when each would be answered."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloud.scheduling.cost import CostModel
from cloud.scheduling.entry import QueueEntry


@dataclass(frozen=True)
class BatchTiming:
    """How long batches of at most ``max_batch`` ROIs take, as learnt.

    ``latency`` is from a batch's start to its results. ``interval`` is from its start until the
    next batch may start: the same in a single stage, shorter in a pipeline.
    """

    latency: CostModel
    interval: CostModel
    max_batch: int

    def efficient_size(self) -> int:
        """Return the batch size beyond which larger batches save hardly any time."""
        return self.interval.efficient_size(self.max_batch)


def batch_size(entries: Sequence[QueueEntry], start_s: float, timing: BatchTiming) -> int:
    """Return how many of the first ``entries``, at least one, to read at once from ``start_s``.

    Up to the efficient size, as long as none of them misses its deadline because of the others.
    """
    soonest_s, n = entries[0].deadline.at_s, 1
    most = min(timing.efficient_size(), len(entries))
    while n < most:
        # one more ROI delays the whole batch: the earliest deadline in it must still hold
        soonest_s = min(soonest_s, entries[n].deadline.at_s)
        if start_s + timing.latency.bound_s(n + 1) > soonest_s:
            break
        n += 1
    return n


def forecast(entries: Sequence[QueueEntry], free_s: float, timing: BatchTiming) -> list[float]:
    """Return when each of ``entries`` is answered if the next batch starts at ``free_s``."""
    answered_s: list[float] = []
    start_s, alone_s = free_s, timing.latency.bound_s(1)
    while (at := len(answered_s)) < len(entries):
        # late even if it is read alone: it will not be read, and delays nothing
        if start_s + alone_s > entries[at].deadline.at_s:
            answered_s.append(start_s + alone_s)
            continue
        # the next batch, all of it answered at once; the one after it starts an interval later
        n = batch_size(entries[at : at + timing.max_batch], start_s, timing)
        answered_s += [start_s + timing.latency.bound_s(n)] * n
        start_s += timing.interval.estimate_s(n)
    return answered_s
