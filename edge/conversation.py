"""What is measured on one stream: when its regions were sent and their answers came."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import accumulate

from edge.arrival import Arrival
from protos.codec import Outcome
from protos.deadline import Clock
from protos.messages import Roi, Summary, Verdict


@dataclass(frozen=True)
class Heard:
    """A message, when it came after the stream's opening, and the bytes that had come by then.

    The first sign of the cloud is heard without a message.
    """

    message: Outcome | Summary | None
    after_s: float
    received_bytes: int


class Conversation:
    """One stream from its opening on.

    Attributes:
        heard_s: seconds until the first sign of the cloud; None while there was none.
        held: whether its regions were sent only then.
        received_bytes: of all answers so far.
        arrivals: the verdicts, in the order in which they came.
    """

    def __init__(self, rois: Sequence[Roi], clock: Clock, *, held: bool = False) -> None:
        self.heard_s: float | None = None
        self.held, self._held_s = held, 0.0
        self.arrivals: list[Arrival] = []
        self._clock, self._began_s = clock, clock()
        self.received_bytes = 0
        sent = accumulate(roi.voxels.nbytes for roi in rois)
        self._sent_bytes = dict(zip((roi.roi_id for roi in rois), sent, strict=True))

    @property
    def after_s(self) -> float:
        """Seconds since it was opened."""
        return self._clock() - self._began_s

    @property
    def sending_s(self) -> float:
        """Seconds since its regions could be sent."""
        return self.after_s - self._held_s

    @property
    def first_bytes(self) -> int:
        """Of its first region, which might have been answered alone; 0 for none."""
        return next(iter(self._sent_bytes.values()), 0)

    def up_to_first(self, unanswered: Container[int]) -> tuple[int, int]:
        """Regions up to and including the first that is ``unanswered``, and bytes; 0 for none."""
        for count, (roi_id, sent_bytes) in enumerate(self._sent_bytes.items(), 1):
            if roi_id in unanswered:
                return count, sent_bytes
        return 0, 0

    def heard(self, after_s: float) -> Heard:
        """The cloud took the stream up ``after_s``; what was held goes now."""
        self.heard_s = after_s
        self._held_s = self.after_s if self.held else 0.0  # a round trip, not slow bytes
        return Heard(None, after_s, 0)

    def came(self, message: Outcome | Summary, answer_bytes: int) -> Heard:
        """The message as it came just now."""
        self.received_bytes += answer_bytes
        return Heard(message, self.after_s, self.received_bytes)

    def arrived(self, verdict: Verdict, heard: Heard) -> None:
        """What was heard is a verdict to go by."""
        self.arrivals.append(
            Arrival(
                sent_bytes=self._sent_bytes[verdict.roi_id],
                after_s=heard.after_s - self._held_s,
                queue_s=verdict.queue_s,
                compute_s=verdict.compute_s,
                received_bytes=heard.received_bytes,
            )
        )
