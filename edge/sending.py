"""What one stream sends: its header, then its regions, at once or when the cloud has room for them.

gRPC takes the requests from a thread of its own, which waits here while the regions are held.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from protos import overread_pb2 as pb
from protos.codec import encode_header, encode_roi
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable
from protos.messages import Header, Refusal, Roi


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
