"""What is measured on one stream: when its regions were sent and their answers came.

What one stream sends: its header, then its regions, at once or when the cloud has room for them.

gRPC takes the requests from a thread of its own, which waits here while the regions are held.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from edge.link.estimate import Arrival
from protos import overread_pb2 as pb
from protos.codec import Outcome, encode_header, encode_roi
from protos.deadline import Clock, Deadline
from protos.errors import DeadlineUnmeetable
from protos.messages import Header, Refusal, Roi, Summary, Verdict


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


class Sending:
    """The requests of one stream; whoever opened it tells `admit` what the cloud said, and `end`.

    Args:
        header: goes first.
        rois: the most valuable first.
        deadline: nothing that is held is waited for beyond it.
        held: whether the regions wait until they are admitted.
    """

    def __init__(
        self, header: Header, rois: Sequence[Roi], deadline: Deadline, *, held: bool
    ) -> None:
        self._header, self._rois, self._deadline = header, rois, deadline
        self._lock, self._told = threading.Lock(), threading.Event()
        self._most, self._taken = 0 if held else len(rois), 0
        if not held:
            self._told.set()

    def requests(self) -> Iterator[pb.ReadRequest]:
        """The header, then the regions as they may go; ends where none may any more."""
        yield encode_header(self._header)
        self._told.wait(self._deadline.remaining_s)
        while (roi := self._next()) is not None:
            yield encode_roi(roi)

    def admit(self, accepted: int | None) -> list[Refusal]:
        """Lets the first ``accepted`` regions go, all for None; the others that had not gone yet.

        Args:
            accepted: of the regions, the first that come, so many are answered in time.
        """
        count = len(self._rois)
        with self._lock:
            self._most = max(self._taken, count if accepted is None else min(accepted, count))
            left_out = self._rois[self._most :]
        self._told.set()
        reason = f"the cloud had room for {accepted} of {count} regions"
        return [Refusal(roi.roi_id, DeadlineUnmeetable.__name__, reason) for roi in left_out]

    def end(self) -> None:
        """Sends nothing more, and lets go whoever waits."""
        with self._lock:
            self._most = 0
        self._told.set()

    @property
    def began(self) -> bool:
        """Whether any region was sent; gRPC takes the first when the header has gone."""
        return self._taken > 0

    def _next(self) -> Roi | None:
        with self._lock:
            if self._taken >= self._most:
                return None
            self._taken += 1
            return self._rois[self._taken - 1]
