"""What waits in the queue: an ROI, or the place that is kept for one; and what was read in it."""

import asyncio
import itertools
from dataclasses import dataclass, field

from imaging.volume import UInt8Array
from models.runtime.second_reader import Reading
from protos.deadline import Deadline
from protos.errors import OverreadError
from protos.messages import Priority

UNKNOWN_SITE = "unknown"

ROUTINE_MAX_WAIT_S = 1.0
"""A routine ROI is aged after this wait, or after half of its budget if that is shorter."""

KEPT, KEPT_S = 0.25, 2.0
"""A place is kept for an ROI that was announced for this part of its budget, 2 s at most."""


@dataclass(frozen=True)
class RoiResult:
    """What the model read in one ROI.

    The ROI waited ``queue_s`` and was read in the batch numbered ``batch``, which began at
    ``began_s`` on the clock, held ``batch_rois`` and took ``compute_s``.
    """

    reading: Reading
    queue_s: float
    compute_s: float
    batch: int
    began_s: float
    batch_rois: int = 1


@dataclass(eq=False, kw_only=True)
class WaitingRoi:
    """One ROI of ``site``, or the place of one that was announced at ``arrived_s`` on the clock.

    It gets ``voxels`` and ``result`` once it has arrived: uint8 ``(z, y, x)``, and what its caller
    awaits; cancelling that takes the ROI out of the queue. A probe is read even if it is expected
    to be late, so that the cost of a batch is measured again. ``start`` is its place in fair
    queueing: what its site had before, in ROIs divided by the site's weight.

    Attributes:
        aged_s: when it is aged, if it is routine.
        kept_until_s: when its place lapses, if it has not arrived.
        has_place: whether it is in the queue.
        failed: whether a batch with it has failed.
    """

    deadline: Deadline
    priority: Priority
    arrived_s: float
    site: str = UNKNOWN_SITE
    is_probe: bool = False
    failed: bool = False
    voxels: UInt8Array = field(init=False)
    result: asyncio.Future[RoiResult] | None = None
    start: float = 0.0
    number: int = field(default_factory=itertools.count().__next__)
    has_place: bool = False

    def __post_init__(self) -> None:
        self.is_stat = self.priority is Priority.STAT  # read before routine
        self.budget_s = self.deadline.at_s - self.arrived_s
        self.kept_until_s = self.arrived_s + min(KEPT * self.budget_s, KEPT_S)
        self.aged_s = self.arrived_s + min(ROUTINE_MAX_WAIT_S, self.budget_s / 2)

    @property
    def waits(self) -> bool:
        """Whether it has arrived, and somebody still waits for its result."""
        return self.result is not None and not self.result.done()

    def fail(self, error: OverreadError) -> None:
        """Give its caller an error, if there is one who waits."""
        if self.result is not None and not self.result.done():
            self.result.set_exception(error)

    def cancel(self) -> None:
        """Cancel its result."""
        if self.result is not None:
            self.result.cancel()
