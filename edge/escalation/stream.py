"""One stream to the cloud over gRPC: what it sends, what it receives, and how it ends."""

import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import grpc

from edge.escalation.rois import RoiStates
from edge.link.estimate import Arrival
from edge.link.link import Link, Traffic
from edge.settings.core import EdgeSettings
from process import tracing
from protos import overread_pb2 as pb
from protos.codec import Outcome, decode_response, encode_header, encode_roi, load_of
from protos.deadline import Clock, Deadline
from protos.errors import DeadlineUnmeetable, from_status
from protos.messages import (
    SITE_KEY,
    Accepted,
    Header,
    Load,
    Priority,
    Refusal,
    Roi,
    Summary,
    Verdict,
)
from protos.overread_pb2_grpc import OverreadStub


@dataclass(frozen=True)
class Received:
    """A message of the cloud; None stands for its first response, which holds no message.

    ``after_s`` counts from the opening of the stream, ``received_bytes`` all answers up to here.
    """

    message: Outcome | Summary | None
    after_s: float
    received_bytes: int


class StreamTiming:
    """Measure one stream from its opening on.

    Attributes:
        first_response_s: seconds until the first response of the cloud; None before it.
        held: whether the ROIs are sent only after the first response.
        received_bytes: of all answers so far.
        arrivals: the verdicts, in the order in which they came.
    """

    def __init__(self, rois: Sequence[Roi], clock: Clock, *, held: bool = False) -> None:
        self.first_response_s: float | None = None
        self.held, self._held_s = held, 0.0
        self.arrivals: list[Arrival] = []
        self._clock, self._began_s = clock, clock()
        self.received_bytes = 0
        sent = accumulate(roi.voxels.nbytes for roi in rois)
        self._sent_bytes = dict(zip((roi.roi_id for roi in rois), sent, strict=True))

    @property
    def after_s(self) -> float:
        """Seconds since the stream was opened."""
        return self._clock() - self._began_s

    @property
    def sending_s(self) -> float:
        """Seconds since the ROIs could be sent."""
        return self.after_s - self._held_s

    @property
    def first_bytes(self) -> int:
        """Bytes of the first ROI, which might have been answered alone; 0 for none."""
        return next(iter(self._sent_bytes.values()), 0)

    def up_to_first(self, unanswered: Container[int]) -> tuple[int, int]:
        """Count the ROIs up to and including the first ``unanswered`` one, and their bytes."""
        for count, (roi_id, sent_bytes) in enumerate(self._sent_bytes.items(), 1):
            if roi_id in unanswered:
                return count, sent_bytes
        return 0, 0

    def first_response(self, after_s: float) -> Received:
        """Note that the cloud accepted the stream ``after_s``; held ROIs are sent from now on."""
        self.first_response_s = after_s
        self._held_s = self.after_s if self.held else 0.0  # a round trip, not slow bytes
        return Received(None, after_s, 0)

    def received(self, message: Outcome | Summary, answer_bytes: int) -> Received:
        """Note a message that came just now."""
        self.received_bytes += answer_bytes
        return Received(message, self.after_s, self.received_bytes)

    def arrived(self, verdict: Verdict, received: Received) -> None:
        """Note that the message is a verdict that counts."""
        self.arrivals.append(
            Arrival(
                sent_bytes=self._sent_bytes[verdict.roi_id],
                after_s=received.after_s - self._held_s,
                queue_s=verdict.queue_s,
                compute_s=verdict.compute_s,
                received_bytes=received.received_bytes,
            )
        )


class GrpcStream:
    """One stream of the contract, opened with the ROIs that are open now.

    Where the cloud is busy, the ROIs are held until it has accepted the header. ``priority`` is
    that of the study.
    """

    def __init__(
        self,
        stub: OverreadStub,
        settings: EdgeSettings,
        link: Link,
        states: RoiStates,
        deadline: Deadline,
        study_key: str,
        *,
        priority: Priority,
    ) -> None:
        rois, left_s = list(states.open.values()), deadline.remaining_s
        budget_s = left_s - min(link.round_trip_s or 0.0, left_s / 2)  # there and back
        header = Header(study_key, settings.cloud.model, budget_s, len(rois), priority)
        held = link.estimate().middle.busy
        self._requests = RequestIterator(header, rois, deadline, link.carried, held=held)
        self._carried = link.carried
        self.timing = StreamTiming(rois, deadline.clock, held=held)
        self.load: Load | None = None
        given = {SITE_KEY: settings.site, **tracing.metadata()}
        metadata = tuple((name, value) for name, value in given.items() if value) or None
        self._call = stub.Read(self._requests.requests(), timeout=left_s, metadata=metadata)
        self._cancel: Callable[[], object] = self._call.cancel

    def listen(self) -> Iterator[Received]:
        """Yield every answer as it comes.

        Raises:
            OverreadError: the stream ended early, or an answer breaks the contract.
        """
        try:
            # Empty metadata comes when the cloud accepts the header, but also when the stream
            # failed: only what follows tells which.
            self._call.initial_metadata()
            first_s = self.timing.after_s
            for response in self._call:
                if response.WhichOneof("response") is None:
                    continue  # of a later contract
                began_s, size = time.perf_counter(), response.ByteSize()
                message = decode_response(response)
                decode_s = time.perf_counter() - began_s
                self._carried(Traffic(received_bytes=size, coding_s=decode_s))
                if isinstance(message, Accepted):
                    yield from self._first_response(message.rois, first_s)
                    continue
                if isinstance(message, Summary):
                    self.load = message.load
                yield self.timing.received(message, size)
        except grpc.RpcError:
            metadata = self._call.trailing_metadata()
            self.load = load_of(metadata)
            raise from_status(self._call.code(), self._call.details(), metadata) from None
        finally:
            self.cancel()  # changes nothing of a call that has ended

    @property
    def sent(self) -> bool:
        """Whether any ROI was sent."""
        return self._requests.began

    def cancel(self) -> None:
        """End the stream; the cloud drops what it has not read yet."""
        self._requests.end()
        self._cancel()

    def _first_response(self, accepted: int, after_s: float) -> Iterator[Received]:
        """Yield the first response, and a refusal for every ROI that the cloud cannot accept."""
        received = self.timing.first_response(after_s)
        left_out = self._requests.admit(accepted)
        yield received
        for refusal in left_out:
            yield self.timing.received(refusal, 0)


class RequestIterator:
    """The requests of one stream; `admit` sends the held ROIs, `end` stops the sending.

    gRPC takes the requests from a thread of its own, which waits here while the ROIs are held,
    until the deadline at most. The ROIs are sent in their order, the most valuable first.
    """

    def __init__(
        self,
        header: Header,
        rois: Sequence[Roi],
        deadline: Deadline,
        carried: Callable[[Traffic], None],
        *,
        held: bool,
    ) -> None:
        self._carried = carried
        self._header, self._rois, self._deadline = header, rois, deadline
        self._lock, self._released = threading.Lock(), threading.Event()
        self._limit, self._taken = 0 if held else len(rois), 0
        if not held:
            self._released.set()

    def requests(self) -> Iterator[pb.ReadRequest]:
        """Yield the header, then every ROI that may be sent."""
        yield encode_header(self._header)
        self._released.wait(self._deadline.remaining_s)
        while (roi := self._next()) is not None:
            began_s = time.perf_counter()
            message = encode_roi(roi)
            encode_s = time.perf_counter() - began_s
            self._carried(Traffic(sent_bytes=message.ByteSize(), coding_s=encode_s))
            yield message

    def admit(self, accepted: int) -> list[Refusal]:
        """Send the first ``accepted`` ROIs; refuse the others not sent yet."""
        count = len(self._rois)
        with self._lock:
            self._limit = max(self._taken, min(accepted, count))
            left_out = self._rois[self._limit :]
        self._released.set()
        reason = f"the cloud accepted {accepted} of {count} ROIs"
        return [Refusal(roi.roi_id, DeadlineUnmeetable.__name__, reason) for roi in left_out]

    def end(self) -> None:
        """Send nothing more, and release the waiting thread."""
        with self._lock:
            self._limit = 0
        self._released.set()

    @property
    def began(self) -> bool:
        """Whether any ROI was sent; gRPC takes the first when the header has gone."""
        return self._taken > 0

    def _next(self) -> Roi | None:
        with self._lock:
            if self._taken >= self._limit:
                return None
            self._taken += 1
            return self._rois[self._taken - 1]
