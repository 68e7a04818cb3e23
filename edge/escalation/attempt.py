"""Run the attempts of one escalation, and report the results to the links.

An attempt opens one stream, to the first cloud whose link admits it. After one that failed or left
ROIs open, the other cloud gets those (fail-over).

This module knows nothing of gRPC: `edge.escalation.stream` implements `Stream`. The number of
attempts and the pauses between them are decided in `edge.escalation.client`.
"""

import queue
import threading
from collections.abc import Callable, Container, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from edge.escalation.rois import RoiStates
from edge.link.estimate import Arrival
from edge.link.link import Link
from protos.codec import Outcome
from protos.deadline import Clock, Deadline
from protos.errors import CallerFault, DeadlinePassed, LinkFault, OverreadError
from protos.messages import Load, Roi, Summary, Verdict

SUMMARY_S = 0.02
"""How long the summary of a stream is waited for after the last answer."""


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


class Stream(Protocol):
    """An open stream to a cloud: the border to gRPC."""

    @property
    def sent(self) -> bool:
        """Whether any ROI was sent."""

    @property
    def timing(self) -> StreamTiming:
        """When its ROIs were sent and their answers came."""

    @property
    def load(self) -> Load | None:
        """The load that the cloud reported when the stream ended; None if it reported none."""

    def listen(self) -> Iterator[Received]:
        """Yield what the cloud sends until the stream ends.

        Raises:
            OverreadError: the stream ended early.
        """

    def cancel(self) -> None:
        """End the stream."""


def _follow(
    stream: Stream,
    deadline: Deadline,
    silence_s: float,
    take: Callable[[Received], None],
    done: Callable[[], bool],
) -> OverreadError | None:
    """Take what a stream brings until it ends or all is answered; return the fault that ended it.

    A thread of its own listens, so that a silent stream holds nobody: it is given up when its first
    response takes longer than ``silence_s``, and at the deadline.
    """
    events = queue.SimpleQueue[Received | Exception | None]()
    threading.Thread(target=_listen, args=(stream, events), daemon=True).start()
    until = deadline.capped(silence_s)
    try:
        while True:
            # when all is answered, only the summary is of interest, for the queue that it reports
            left_s = min(until.remaining_s, SUMMARY_S) if done() else until.remaining_s
            match events.get(timeout=left_s):
                case Received() as received:
                    until = deadline
                    take(received)
                case OverreadError() as fault:
                    return None if done() else fault
                case None:
                    return None
                case exception:
                    raise exception
    except queue.Empty:
        if done():
            return None
        if deadline.passed:
            return DeadlinePassed("the answer did not arrive before the deadline")
        return DeadlinePassed(f"no response from the cloud within {silence_s:.1f} s")
    finally:
        stream.cancel()


def _listen(stream: Stream, events: "queue.SimpleQueue[Received | Exception | None]") -> None:
    """Hand on what a stream brings, then its end: an exception, or None."""
    end: Exception | None = None
    try:
        for received in stream.listen():
            events.put(received)
    except Exception as error:  # whatever it is, the caller's thread deals with it
        end = error
    events.put(end)


OpenStream = Callable[[RoiStates, Deadline, str], Stream]
"""Opens a stream with the ROIs that are open now, until a deadline, under a study key."""


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One cloud: how a stream to it is opened, and its link."""

    open: OpenStream
    link: Link


class Escalation:
    """One escalation through all its attempts; call `close` at the end in any case.

    Args:
        endpoints: the cloud, and the one to fail over to. The first whose link admits the
            escalation is used.
        rois: the ROIs and their answers.
        counts: whether a missed deadline counts against the link of a cloud that responded.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        rois: RoiStates,
        deadline: Deadline,
        study_key: str,
        *,
        counts: bool = True,
    ) -> None:
        self._rois, self._deadline, self._study_key = rois, deadline, study_key
        self._counts = counts
        self._untried, self._entered = list(endpoints), list[Endpoint]()
        self._ended: dict[Endpoint, tuple[Stream, OverreadError | None]] = {}

    def enter(self) -> bool:
        """Take the next cloud whose link admits this escalation; return whether there is one."""
        while self._untried:
            endpoint = self._untried.pop(0)
            if endpoint.link.enter():
                self._entered.insert(0, endpoint)
                return True
        return False

    def attempt(self) -> OverreadError | None:
        """Open one stream and follow it; return the fault that ended it early."""
        endpoint = self._entered[0]
        silence_s = endpoint.link.response_timeout_s()
        stream = endpoint.open(self._rois, self._deadline, self._study_key)
        self._ended[endpoint] = stream, None  # as it is where what follows raises

        def take(received: Received) -> None:
            endpoint.link.responded()
            if (message := received.message) is None:
                return
            counts = self._rois.take(message, elsewhere=bool(self._untried))
            if counts and isinstance(message, Verdict):
                stream.timing.arrived(message, received)

        fault = _follow(stream, self._deadline, silence_s, take, lambda: not self._rois.open)
        self._ended[endpoint] = stream, fault
        return fault

    def fail_over(self, fault: OverreadError | None) -> bool:
        """Take the other cloud for what is still open; return whether it was not tried before.

        A request that is wrong stays with the cloud that said so: it is wrong for any. Where both
        clouds were tried they take turns.
        """
        if isinstance(fault, CallerFault):
            return False
        if self.enter():
            return True
        self._entered.append(self._entered.pop(0))
        return False

    def close(self) -> None:
        """Report the result to every link that admitted this escalation."""
        for endpoint in self._entered:
            if endpoint in self._ended:
                stream, fault = self._ended[endpoint]
                _learn(endpoint.link, stream, fault, self._rois.unanswered, counts=self._counts)
            else:
                endpoint.link.inconclusive()


def _learn(
    link: Link, stream: Stream, fault: OverreadError | None, unanswered: Set[int], *, counts: bool
) -> None:
    """Report to the link what one stream shows: it brought verdicts, was too slow, or broke."""
    timing = stream.timing
    response_s, sending_s = timing.first_response_s, timing.sending_s
    # 1. The connection broke: nothing is known of its speed.
    if isinstance(fault, LinkFault) and not isinstance(fault, DeadlinePassed):
        link.failed(fault.text)
    # 2. Verdicts came: they are measurements. If the deadline cut off the rest, the first ROI
    #    without an answer bounds the speed as well.
    elif timing.arrivals:
        link.succeeded(timing.arrivals, response_s or 0.0)
        rois, sent_bytes = timing.up_to_first(unanswered)
        if isinstance(fault, DeadlinePassed) and rois:
            link.slower_than(sent_bytes, sending_s, response_s, rois)
    # 3. The deadline passed without any response: the cloud may be gone. This bounds no speed.
    elif isinstance(fault, DeadlinePassed) and response_s is None:
        link.failed(fault.text)
    # 4. The cloud responded, but not one verdict came in time.
    elif isinstance(fault, DeadlinePassed) and stream.sent:
        link.missed(timing.first_bytes, sending_s, response_s, counts=counts)
    # 5. The cloud refused: it is reachable.
    else:
        link.succeeded(())
    # Last, so that the queue that the cloud reports replaces one inferred above.
    if stream.load is not None:
        link.queue_reported(stream.load.queue_s)
