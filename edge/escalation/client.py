"""Asks the cloud for a second reading, and always comes back in time with what was answered.

The only place on the edge that sees gRPC's errors: whatever happens on the link leaves here as
an `Escalated` with its reason.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import grpc

from edge.budget import Budget
from edge.decide import Plan
from edge.escalation.attempt import Escalation, Way
from edge.escalation.rois import Escalated, Exchange, cut_rois
from edge.escalation.stream import Conversation, Heard, Sending
from edge.link.estimate import OFF, LinkEstimate
from edge.link.link import Link
from imaging.preprocess import Preprocessed
from protos import overread_pb2 as pb
from protos.codec import decode_response
from protos.deadline import Deadline
from protos.errors import DeadlinePassed, LinkFault, OverreadError, Unreachable, from_status
from protos.messages import Header, Priority, Roi
from protos.metadata import SITE_KEY, Load, accepted_of, load_of
from protos.overread_pb2_grpc import OverreadStub

RECONNECT_PAUSE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.1, 1.0

FAILED_S = 0.02
"""By then gRPC has told that a stream of which it gave empty metadata has failed."""


class SecondReader(Protocol):
    """What the line needs of whoever gives second readings."""

    def estimate(self) -> LinkEstimate:
        """What to expect of the link now."""

    def read(self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str) -> Escalated:
        """The second reading of the regions that ``plan`` sends."""

    def ask(self, rois: Sequence[Roi], deadline: Deadline, study_key: str) -> Escalated:
        """The second reading of ``rois``, whenever they were cut, by ``deadline``."""


class NoSecondReader:
    """Stands in the line of a site without a cloud."""

    def estimate(self) -> LinkEstimate:
        """Always off."""
        return OFF

    def read(self, *_: object) -> Escalated:
        """Nothing, and that it was not asked for."""
        return Escalated(reason=OFF.reason, switched_off=True)

    ask = read


@dataclass(frozen=True)
class Asking:
    """How a study is offered to the cloud.

    Attributes:
        shape: of the regions, voxels (z, y, x).
        reserve_s: seconds kept back for the stages after the escalation.
        attempts: streams that are opened for one study at most.
        model_version: of the cloud's model that is expected; empty for any.
        priority: clinical priority.
        site: what the cloud calls the caller; empty for none.
    """

    shape: tuple[int, int, int]
    reserve_s: float
    attempts: int = 3
    model_version: str = ""
    priority: Priority = Priority.ROUTINE
    site: str = ""


class Escalator:
    """The second reader at the other end of a channel, used for study after study.

    Args:
        channel: to the cloud.
        link: learns of it, and keeps from asking while it cannot be reached.
        asking: how studies are offered.
        hedge: another cloud with its link: asked beside the first where that is slow or fails,
            and instead of it while it cannot be reached.
        sleep: pauses; injected for tests.
        jitter: a random number between two bounds; injected for tests.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        link: Link,
        asking: Asking,
        *,
        hedge: tuple[grpc.Channel, Link] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        clouds = [(channel, link), *([hedge] if hedge else [])]
        self._ways = [Way(partial(_Call, OverreadStub(to), asking, by), by) for to, by in clouds]
        self._asking, self._sleep, self._jitter = asking, sleep, jitter

    def estimate(self) -> LinkEstimate:
        """What to expect of the first link that is there now; after a start it is waited for."""
        return self._expected(lambda link: link.settle())

    def glance(self) -> LinkEstimate:
        """As `estimate`, without waiting for anything."""
        return self._expected(lambda _link: None)

    def _expected(self, settle: Callable[[Link], None]) -> LinkEstimate:
        estimates = []
        for way in self._ways:
            settle(way.link)
            estimates.append(way.link.estimate())
            if estimates[-1].available:
                return estimates[-1]
        return estimates[0]

    def read(self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str) -> Escalated:
        """The verdicts that came within ``budget`` less the reserve; nothing is raised."""
        deadline = budget.deadline.capped(budget.left_s(self._asking.reserve_s))
        rois = cut_rois(plan, box, self._asking.shape)
        return self._ask(rois, deadline, study_key, counts=True)

    def ask(self, rois: Sequence[Roi], deadline: Deadline, study_key: str) -> Escalated:
        """The verdicts on ``rois`` that came by ``deadline``; nothing is raised.

        A retry carries the same ``study_key`` and only the regions not yet answered. While no
        link is there nothing is sent. The deadline may be short: where it is missed by a cloud
        that was heard, the breaker does not count it.
        """
        return self._ask(rois, deadline, study_key, counts=False)

    def _ask(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str, *, counts: bool
    ) -> Escalated:
        for way in self._ways:
            way.link.settle()
        exchange = Exchange(rois)
        if deadline.passed or not exchange.open:
            return exchange.ended(DeadlinePassed("no time was left to ask"), 0)
        escalation = Escalation(self._ways, exchange, deadline, study_key, counts=counts)
        try:
            if not escalation.enter():
                return Escalated(reason=self.estimate().reason)
            fault, attempts = self._attempts(escalation, exchange, deadline)
        finally:
            escalation.close()
        return exchange.ended(fault, attempts)

    def _attempts(
        self, escalation: Escalation, exchange: Exchange, deadline: Deadline
    ) -> tuple[OverreadError | None, int]:
        """Tries until all is answered or nothing helps; the last fault, and how often it was."""
        fault: OverreadError | None = None
        for attempt in range(self._asking.attempts):
            self._sleep(min(self._pause_s(attempt, fault), deadline.remaining_s))
            if deadline.passed or not exchange.open:
                return fault, attempt
            fault = escalation.attempt()
            if not exchange.may_pass(fault):
                return fault, attempt + 1
        return fault, self._asking.attempts

    def _pause_s(self, attempt: int, fault: OverreadError | None) -> float:
        """The pause before an attempt after ``fault``: random, up to a bound that doubles.

        Full jitter: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015. A
        connection that broke is made anew at once or not at all: a dead cloud costs little time.
        """
        if attempt == 0:
            return 0.0
        first_s = RECONNECT_PAUSE_S if isinstance(fault, Unreachable) else FIRST_PAUSE_S
        return self._jitter(0.0, min(LONGEST_PAUSE_S, first_s * 2 ** (attempt - 1)))


class _Call:
    """One stream of the contract, opened with the regions that are open now.

    Where the cloud is busy it is asked first: the regions follow when it has taken the header.
    """

    def __init__(
        self,
        stub: OverreadStub,
        asking: Asking,
        link: Link,
        exchange: Exchange,
        deadline: Deadline,
        study_key: str,
    ) -> None:
        rois, left_s = list(exchange.open.values()), deadline.remaining_s
        budget_s = left_s - min(link.round_trip_s or 0.0, left_s / 2)  # there and back
        header = Header(study_key, asking.model_version, budget_s, len(rois), asking.priority)
        held = link.estimate().middle.busy
        self._sending = Sending(header, rois, deadline, held=held)
        self.conversation = Conversation(rois, deadline.clock, held=held)
        self.load: Load | None = None
        metadata = ((SITE_KEY, asking.site),) if asking.site else None
        self._call = stub.Read(self._sending.requests(), timeout=left_s, metadata=metadata)
        self._over = threading.Event()
        if not self._call.add_callback(self._over.set):
            self._over.set()

    def listen(self) -> Iterator[Heard]:
        """Every answer as it comes.

        Raises:
            OverreadError: the stream ended early, or an answer is not of this contract.
        """
        try:
            yield from self._taken_up()
            for response in self._call:
                yield self.conversation.came(decode_response(response), response.ByteSize())
        except grpc.RpcError:
            metadata = self._call.trailing_metadata()
            raise from_status(self._call.code(), self._call.details(), metadata) from None
        finally:
            self.cancel()  # changes nothing of a call that has ended
            self.load = load_of(self._call.trailing_metadata())

    @property
    def sent(self) -> bool:
        """Whether any of its regions were sent."""
        return self._sending.began

    def cancel(self) -> None:
        """Ends the stream; what the cloud has not read yet it never will."""
        self._sending.end()
        _end(self._call)

    def _taken_up(self) -> Iterator[Heard]:
        """The first sign of the cloud, and the refusal of every region that it has no room for."""
        # sent as soon as the cloud has taken the header; there is one too where it failed instead
        accepted = accepted_of(self._call.initial_metadata())
        after_s = self.conversation.after_s
        if accepted is None and self._over.wait(FAILED_S):
            return
        heard = self.conversation.heard(after_s)
        left_out = self._sending.admit(accepted)
        yield heard
        for refusal in left_out:
            yield self.conversation.came(refusal, 0)


class Knock:
    """A small question to see whether the cloud is there, with ``timeout_s`` for its answer."""

    def __init__(self, channel: grpc.Channel, timeout_s: float) -> None:
        self._call = OverreadStub(channel).Describe.future(pb.DescribeRequest(), timeout=timeout_s)

    def fault(self) -> LinkFault | None:
        """Waits; None where it answered, whatever it was."""
        call = self._call
        if (code := call.code()) is grpc.StatusCode.OK:
            return None
        fault = from_status(code, call.details(), call.trailing_metadata())
        return fault if isinstance(fault, LinkFault) else None

    def cancel(self) -> None:
        """Ends it: who waits is told that it failed."""
        _end(self._call)


class _Endable(Protocol):
    """A call of gRPC, as far as its stubs leave it untyped."""

    def cancel(self) -> object: ...


def _end(call: _Endable) -> None:
    call.cancel()
