"""One escalation: which clouds are asked in each attempt, and what their links learn of it.

It knows nothing of gRPC, nor of how often is tried: `edge.escalate` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from edge.conversation import Conversation, Heard
from edge.exchange import Exchange, no_room
from edge.hedge import Race, Runner
from edge.link import Link
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, LinkFault, OverreadError
from protos.messages import Verdict
from protos.metadata import Load


class Stream(Runner, Protocol):
    """A stream to a cloud, what is measured on it, and what the cloud says of its own load."""

    @property
    def sent(self) -> bool:
        """Whether any of its regions were sent."""

    @property
    def conversation(self) -> Conversation:
        """When its regions were sent and their answers came."""

    @property
    def load(self) -> Load | None:
        """In trailing metadata, when it has ended; None where it tells none."""


@dataclass(frozen=True, eq=False)
class Way:
    """One address that gives second readings: how a stream to it is opened, and its link."""

    open: Callable[[Exchange, Deadline, str], Stream]
    link: Link


class Escalation:
    """One escalation through all its attempts; `close` it in the end, however it went.

    Args:
        ways: to the clouds; the first that lets one in is asked, the next is the hedge.
        exchange: the regions and their answers.
        deadline: for all of it.
        study_key: the same in every stream.
        counts: whether a deadline missed by a cloud that was heard counts against its link.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        exchange: Exchange,
        deadline: Deadline,
        study_key: str,
        *,
        counts: bool = True,
    ) -> None:
        self._exchange, self._deadline, self._study_key = exchange, deadline, study_key
        self._counts = counts
        self._untried = list(ways)
        self._entered: list[Way] = []
        self._streams: dict[Way, Stream] = {}
        self._links: dict[Stream, Link] = {}
        self._faults: dict[Stream, OverreadError] = {}

    def enter(self) -> bool:
        """Whether any link lets this escalation in."""
        return self._way(0) is not None

    def attempt(self) -> OverreadError | None:
        """One stream from its header to its end, and the hedge; returns what ended it early."""
        race = Race(self._deadline, self._take, lambda: not self._exchange.open)
        first = self._entered[0]
        silence_s = first.link.patience_s()
        fault = race.run(self._opened(first), self._slow_s(first), self._hedge, silence_s)
        self._faults |= race.faults
        self._exchange.close_left_over()
        return fault

    def close(self) -> None:
        """Tells every link that let this in how it went."""
        for way in self._entered:
            stream = self._streams.get(way)
            if stream is None:
                way.link.left()
            else:
                fault, unanswered = self._faults.get(stream), self._exchange.unanswered
                _learn(way.link, stream, fault, unanswered, counts=self._counts)

    def _way(self, number: int) -> Way | None:
        """The way of that number among those that let this in; it enters where it must."""
        while len(self._entered) <= number and self._untried:
            way = self._untried.pop(0)
            if way.link.enter():
                self._entered.append(way)
        return self._entered[number] if number < len(self._entered) else None

    def _opened(self, way: Way) -> Stream:
        stream = way.open(self._exchange, self._deadline, self._study_key)
        self._streams[way], self._links[stream] = stream, way.link
        return stream

    def _hedge(self) -> Stream | None:
        way = self._way(1)
        return None if way is None else self._opened(way)

    def _slow_s(self, way: Way) -> float:
        """What 19 of 20 such streams do not exceed."""
        rois = self._exchange.open.values()
        sent_bytes = sum(roi.voxels.nbytes for roi in rois)
        return way.link.estimate().completion_s(len(rois), sent_bytes)

    def _take(self, stream: Stream, heard: Heard) -> bool:
        """Files it; whether another cloud may have the room that this one lacks."""
        self._links[stream].sign()
        if (message := heard.message) is None:
            return False
        elsewhere = no_room(message) and self._way(1) is not None
        taken = self._exchange.take(message, elsewhere=elsewhere)
        if taken and isinstance(message, Verdict):
            stream.conversation.arrived(message, heard)
        return elsewhere


def _learn(
    link: Link,
    stream: Stream,
    fault: OverreadError | None,
    unanswered: Set[int],
    *,
    counts: bool,
) -> None:
    """What one stream tells of its link: it brought verdicts, was too slow, or broke.

    A cloud that refuses is there all the same. One of which nothing was heard at all tells nothing
    of how fast its link is. One that lost to the hedge was slow at least, if any region was sent;
    so was one that brought something, but not all. What the cloud says of its queue goes before
    what is guessed of it.
    """
    conversation = stream.conversation
    heard_s, sending_s = conversation.heard_s, conversation.sending_s
    if isinstance(fault, LinkFault) and not isinstance(fault, DeadlinePassed):
        link.failed(f"{fault.kind}: {fault.reason}")
    elif conversation.arrivals:
        link.succeeded(conversation.arrivals, heard_s or 0.0)
        rois, sent_bytes = conversation.up_to_first(unanswered)
        if isinstance(fault, DeadlinePassed) and rois:
            link.slower_than(sent_bytes, sending_s, heard_s, rois)
    elif isinstance(fault, DeadlinePassed) and heard_s is None:
        link.failed(fault.reason)
    elif isinstance(fault, DeadlinePassed) and stream.sent:
        link.missed(conversation.first_bytes, sending_s, heard_s, counts=counts)
    elif fault is None and conversation.received_bytes == 0:
        if stream.sent:
            link.slower_than(conversation.first_bytes, sending_s, heard_s)
        link.left()
    else:
        link.succeeded(())
    if stream.load is not None:
        link.queue_reported(stream.load.queue_s)
