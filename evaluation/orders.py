"""Orders of the queue to compare the cloud's own with: they refuse nothing on arrival.

Both drop what is late, and know neither priority nor site.
"""

from collections.abc import Iterator, Mapping, Sequence

from cloud.scheduling.scheduler import Scheduler, WaitingRoi
from protos.errors import Overloaded, OverreadError


class EarliestDeadline(Scheduler):
    """Reads the earliest deadline first."""

    def admit(self, newcomers: Sequence[WaitingRoi]) -> list[tuple[WaitingRoi, OverreadError]]:
        """Admit the newcomers while there is room."""
        if len(self.waiting) + len(newcomers) > self.rules.max_queued:
            raise Overloaded("the queue is full", limit=self.rules.max_queued)
        return []

    def order(
        self, rois: Sequence[WaitingRoi], start_s: float, each_s: float = 0.0
    ) -> Iterator[WaitingRoi]:
        """Yield the ROIs by deadline."""
        del start_s, each_s
        yield from sorted(rois, key=lambda roi: (roi.deadline.at_s, roi.number))


class FirstCome(EarliestDeadline):
    """Reads in order of arrival, in full batches."""

    def order(
        self, rois: Sequence[WaitingRoi], start_s: float, each_s: float = 0.0
    ) -> Iterator[WaitingRoi]:
        """Yield the ROIs by arrival."""
        del start_s, each_s
        yield from sorted(rois, key=lambda roi: roi.number)

    def batch_size(self, order: Sequence[WaitingRoi], start_s: float) -> int:
        """Return as many as fit."""
        del start_s
        return min(self.timing.max_batch, len(order))


ORDERS: Mapping[str, type[Scheduler]] = {
    "deadline": Scheduler,
    "edf": EarliestDeadline,
    "fifo": FirstCome,
}
