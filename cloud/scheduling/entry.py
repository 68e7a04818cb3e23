"""The entries of the queue: ROIs that wait to be read, and their results."""

import asyncio
import itertools
from dataclasses import dataclass, field

from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos.deadline import Deadline
from protos.messages import Priority

UNKNOWN_SITE = "unknown"


@dataclass(frozen=True)
class RoiResult:
    """What the model read in one ROI, and the time it took.

    The ROI waited ``queue_s`` and was read in the batch numbered ``batch``, which began at
    ``began_s`` on the clock and took ``compute_s``.
    """

    reading: Reading
    queue_s: float
    compute_s: float
    batch: int
    began_s: float


@dataclass(frozen=True, eq=False, kw_only=True)
class QueueEntry:
    """All that decides an ROI's position in the queue; it arrived at ``arrived_s`` on the clock."""

    deadline: Deadline
    priority: Priority
    arrived_s: float
    site: str = UNKNOWN_SITE
    number: int = field(default_factory=itertools.count().__next__)

    def aged_at_s(self, routine_max_wait_s: float) -> float:
        """Return when it is aged: after ``routine_max_wait_s``, or half of its budget if sooner."""
        return self.arrived_s + min(routine_max_wait_s, (self.deadline.at_s - self.arrived_s) / 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class QueuedRoi(QueueEntry):
    """One ROI in the queue: ``voxels`` uint8 ``(z, y, x)``.

    Its caller awaits ``result``; cancelling that takes the ROI out of the queue. A probe is read
    even if it is expected to be late, so that the cost of a batch is measured again.
    """

    voxels: UInt8Array
    result: asyncio.Future[RoiResult]
    is_probe: bool = False
