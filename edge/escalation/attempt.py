"""Run the attempts of one escalation, with a hedge, and report the results to the links.

An attempt opens a stream to the first cloud that can be reached. If that is slow or fails, a second
stream to another cloud (the hedge) runs in addition. The first answer to each ROI wins.

This module knows nothing of gRPC: `edge.escalation.stream` implements `Stream`. The number of
attempts and the pauses between them are decided in `edge.escalation.client`.
"""

import math
import queue
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from edge.escalation.rois import RoiStates, is_unmeetable
from edge.link.estimate import Arrival
from edge.link.link import Link
from protos.codec import Outcome
from protos.deadline import Clock, Deadline
from protos.errors import CallerFault, DeadlinePassed, LinkFault, OverreadError
from protos.messages import Load, Roi, Summary, Verdict


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


@dataclass(frozen=True, eq=False)
class _Event:
    """A message of one stream, or its end, with or without an exception."""

    stream: Stream
    received: Received | None = None
    exception: Exception | None = None


class Race:
    """The streams of one attempt: a thread follows each, the caller's thread handles all events.

    Attributes:
        faults: of the streams that ended early, or had not ended at the deadline.

    Args:
        take: records a message; returns whether the hedge should be opened at once.
        done: whether everything is answered.
    """

    def __init__(
        self, deadline: Deadline, take: Callable[[Stream, Received], bool], done: Callable[[], bool]
    ) -> None:
        self.faults: dict[Stream, OverreadError] = {}
        self._deadline, self._take, self._done = deadline, take, done
        self._running: list[Stream] = []
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._open_hedge: Callable[[], Stream | None] | None = None
        self._slow_at = self._silent_at = self._deadline
        self._silence_s, self._silent = math.inf, True

    def run(
        self,
        first: Stream,
        slow_s: float,
        open_hedge: Callable[[], Stream | None] | None,
        silence_s: float = math.inf,
    ) -> OverreadError | None:
        """Run the attempt; return the fault that ended it before everything was answered.

        If there is another cloud, ``open_hedge`` opens the second stream. It is called once: when
        ``first`` takes longer than ``slow_s``, cannot answer in time, or fails by no fault of the
        caller. The attempt ends after ``silence_s`` without anything from any stream.
        """
        self._open_hedge, self._silence_s = open_hedge, silence_s
        self._slow_at = self._deadline.capped(slow_s)
        self._start(first)
        fault = None
        try:
            while self._running:
                if (event := self._next()) is not None:
                    fault = self._handle(event)
                elif not self._hedge():
                    fault = self._time_out()
        finally:
            self._cancel(list(self._running))  # only where something was raised
        return None if self._done() else fault

    def _next(self) -> _Event | None:
        """Wait for the next event; None when a time limit comes first."""
        # When all is answered, only the summary of the last stream, with the queue it reports, is
        # still of interest. Before, the first of three limits counts: deadline, slow stream, silent
        # cloud.
        left_s = self._deadline.remaining_s
        if self._done():
            left_s = min(left_s, 0.02)
        else:
            left_s = min(left_s, self._slow_at.remaining_s if self._open_hedge else left_s)
            left_s = min(left_s, self._silent_at.remaining_s if self._silent else left_s)
        try:
            return self._events.get(timeout=left_s)
        except queue.Empty:
            return None

    def _handle(self, event: _Event) -> OverreadError | None:
        """Record one event; return the fault in it."""
        if event.received is not None:
            self._silent = False
            if self._take(event.stream, event.received):
                self._hedge()
            if self._done():
                self._cancel(loser for loser in list(self._running) if loser is not event.stream)
            return None
        if event.stream not in self._running:
            return None  # it was cancelled
        self._running.remove(event.stream)
        if event.exception is None:
            return None
        if not isinstance(event.exception, OverreadError):
            raise event.exception
        self.faults[event.stream] = event.exception
        if not isinstance(event.exception, CallerFault):
            self._hedge()
        return event.exception

    def _hedge(self) -> bool:
        """Open the hedge if it may still help; return whether it had not been opened before."""
        if self._open_hedge is None or self._done() or self._deadline.passed:
            return False
        open_hedge, self._open_hedge = self._open_hedge, None
        if (stream := open_hedge()) is not None:
            self._start(stream)
        return True

    def _time_out(self) -> OverreadError:
        fault = DeadlinePassed("the answer did not arrive before the deadline")
        if self._silent and not self._deadline.passed:
            fault = DeadlinePassed(f"no response from the cloud within {self._silence_s:.1f} s")
        if not self._done():
            self.faults |= dict.fromkeys(self._running, fault)
        self._cancel(list(self._running))
        return fault

    def _cancel(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            self._running.remove(stream)
            stream.cancel()

    def _start(self, stream: Stream) -> None:
        self._running.append(stream)
        self._silent_at = self._deadline.capped(self._silence_s)
        threading.Thread(target=self._follow, args=(stream,), daemon=True).start()

    def _follow(self, stream: Stream) -> None:
        exception: Exception | None = None
        try:
            for received in stream.listen():
                self._events.put(_Event(stream, received))
        except Exception as error:  # whatever it is, the caller's thread deals with it
            exception = error
        self._events.put(_Event(stream, exception=exception))


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
        endpoints: the clouds. The first whose link admits the escalation is used; the next one is
            the hedge.
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
        self._untried = list(endpoints)
        self._entered: list[Endpoint] = []
        self._streams: dict[Endpoint, Stream] = {}
        self._links: dict[Stream, Link] = {}
        self._faults: dict[Stream, OverreadError] = {}

    def enter(self) -> bool:
        """Return whether any link admits this escalation."""
        return self._endpoint(0) is not None

    def attempt(self) -> OverreadError | None:
        """Run one attempt, with its hedge; return the fault that ended it early."""
        race = Race(self._deadline, self._take, lambda: not self._rois.open)
        first, rois = self._entered[0], self._rois.open.values()
        silence_s = first.link.response_timeout_s()
        # 95 % of such streams take no longer
        slow_s = first.link.estimate().completion_s(
            len(rois), sum(roi.voxels.nbytes for roi in rois)
        )
        fault = race.run(self._opened(first), slow_s, self._hedge, silence_s)
        self._faults |= race.faults
        self._rois.close_unmeetable()
        return fault

    def close(self) -> None:
        """Report the result to every link that admitted this escalation."""
        for endpoint in self._entered:
            stream = self._streams.get(endpoint)
            if stream is None:
                endpoint.link.inconclusive()
            else:
                fault, unanswered = self._faults.get(stream), self._rois.unanswered
                _learn(endpoint.link, stream, fault, unanswered, counts=self._counts)

    def _endpoint(self, number: int) -> Endpoint | None:
        """Return the endpoint of that number among those that admit this; enter more if needed."""
        while len(self._entered) <= number and self._untried:
            endpoint = self._untried.pop(0)
            if endpoint.link.enter():
                self._entered.append(endpoint)
        return self._entered[number] if number < len(self._entered) else None

    def _opened(self, endpoint: Endpoint) -> Stream:
        stream = endpoint.open(self._rois, self._deadline, self._study_key)
        self._streams[endpoint], self._links[stream] = stream, endpoint.link
        return stream

    def _hedge(self) -> Stream | None:
        endpoint = self._endpoint(1)
        return None if endpoint is None else self._opened(endpoint)

    def _take(self, stream: Stream, received: Received) -> bool:
        """Record a message; return whether another cloud may answer what this one cannot."""
        self._links[stream].responded()
        if (message := received.message) is None:
            return False
        elsewhere = is_unmeetable(message) and self._endpoint(1) is not None
        taken = self._rois.take(message, elsewhere=elsewhere)
        if taken and isinstance(message, Verdict):
            stream.timing.arrived(message, received)
        return elsewhere


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
    # 5. The stream was cancelled because the hedge won: it was at least as slow as that,
    #    provided that it sent anything.
    elif fault is None and timing.received_bytes == 0:
        if stream.sent:
            link.slower_than(timing.first_bytes, sending_s, response_s)
        link.inconclusive()
    # 6. The cloud refused: it is reachable.
    else:
        link.succeeded(())
    # Last, so that the queue that the cloud reports replaces one inferred above.
    if stream.load is not None:
        link.queue_reported(stream.load.queue_s)
