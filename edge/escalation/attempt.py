"""Run the attempts of one escalation, and report the results to the links.

An attempt opens one stream, to the first cloud whose link admits it. After one that failed or left
ROIs open, the other cloud gets those (fail-over).

The number of attempts and the pauses between them are decided in `edge.escalation.client`.
"""

import queue
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from edge.escalation.rois import RoiStates
from edge.escalation.stream import GrpcStream, Received
from edge.link.link import Link
from protos.deadline import Deadline
from protos.errors import CallerFault, DeadlinePassed, LinkFault, OverreadError
from protos.messages import Verdict

SUMMARY_S = 0.02
"""How long the summary of a stream is waited for after the last answer."""


def _follow(
    stream: GrpcStream,
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


def _listen(stream: GrpcStream, events: "queue.SimpleQueue[Received | Exception | None]") -> None:
    """Hand on what a stream brings, then its end: an exception, or None."""
    end: Exception | None = None
    try:
        for received in stream.listen():
            events.put(received)
    except Exception as error:  # whatever it is, the caller's thread deals with it
        end = error
    events.put(end)


OpenStream = Callable[[RoiStates, Deadline, str], GrpcStream]
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
        self._ended: dict[Endpoint, tuple[GrpcStream, OverreadError | None]] = {}

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
    link: Link,
    stream: GrpcStream,
    fault: OverreadError | None,
    unanswered: Set[int],
    *,
    counts: bool,
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
