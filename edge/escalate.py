"""Asks the cloud for a second reading, and always comes back in time with what was answered.

The only place on the edge that sees gRPC's errors: whatever happens on the link leaves here as
an `Escalated` with its reason.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import grpc

from edge.budget import Budget
from edge.decide import Plan
from edge.exchange import Escalated, Exchange, cut_rois
from edge.link import OFF, Link, LinkEstimate
from imaging.preprocess import Preprocessed
from protos.codec import decode_response
from protos.deadline import Deadline
from protos.errors import (
    ChecksumMismatch,
    DeadlinePassed,
    Draining,
    LinkFault,
    Overloaded,
    OverreadError,
    Unreachable,
    from_status,
)
from protos.load import load_of
from protos.messages import Header, Priority
from protos.overread_pb2_grpc import OverreadStub

RETRYABLE = (Unreachable, Overloaded, Draining, ChecksumMismatch)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0


class SecondReader(Protocol):
    """What the line needs of whoever gives second readings."""

    def estimate(self) -> LinkEstimate:
        """What to expect of the link now."""

    def read(self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str) -> Escalated:
        """The second reading of the regions that ``plan`` sends."""


class NoSecondReader:
    """Stands in the line of a site without a cloud."""

    def estimate(self) -> LinkEstimate:
        """Always off."""
        return OFF

    def read(self, *_: object) -> Escalated:
        """Nothing, and that it was not asked for."""
        return Escalated(reason=OFF.reason, switched_off=True)


@dataclass(frozen=True)
class Asking:
    """How a study is offered to the cloud.

    Attributes:
        shape: of the regions, voxels (z, y, x).
        reserve_s: seconds kept back for the stages after the escalation.
        attempts: streams that are opened for one study at most.
        model_version: of the cloud's model that is expected; empty for any.
        priority: clinical priority.
    """

    shape: tuple[int, int, int]
    reserve_s: float
    attempts: int = 3
    model_version: str = ""
    priority: Priority = Priority.ROUTINE


class Escalator:
    """The second reader at the other end of a channel, used for study after study.

    ``sleep`` and ``jitter`` (uniform between two bounds) are injected for tests.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        link: Link,
        asking: Asking,
        *,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._stub, self._link, self._asking = OverreadStub(channel), link, asking
        self._sleep, self._jitter = sleep, jitter

    def estimate(self) -> LinkEstimate:
        """What to expect of the link now."""
        return self._link.estimate()

    def read(self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str) -> Escalated:
        """The verdicts that came within ``budget`` less the reserve; nothing is raised.

        A retry carries the same ``study_key`` and only the regions not yet answered.
        """
        deadline = budget.deadline.capped(budget.left_s(self._asking.reserve_s))
        exchange = Exchange(cut_rois(plan, box, self._asking.shape), deadline.clock)
        fault: OverreadError | None = DeadlinePassed("no time was left to ask")
        attempts = 0
        for pause_s in self._pauses_s():
            self._sleep(min(pause_s, deadline.remaining_s))
            if deadline.passed or not exchange.open:
                break
            attempts += 1
            fault = self._attempt(exchange, deadline, study_key)
            if not isinstance(fault, RETRYABLE):
                break
        self._learn(exchange, fault if attempts else None)
        return exchange.ended(fault, attempts)

    def _pauses_s(self) -> Iterator[float]:
        """The pause before each attempt: random, up to a bound that doubles.

        Full jitter: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
        """
        yield 0.0
        for retry in range(self._asking.attempts - 1):
            yield self._jitter(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retry))

    def _attempt(
        self, exchange: Exchange, deadline: Deadline, study_key: str
    ) -> OverreadError | None:
        """One stream from its header to its end; returns what ended it early."""
        asking, budget_s = self._asking, deadline.remaining_s
        header = Header(
            study_key, asking.model_version, budget_s, len(exchange.open), asking.priority
        )
        call = self._stub.Read(exchange.requests(header), timeout=deadline.remaining_s)
        try:
            for response in call:
                exchange.take(decode_response(response))
        except grpc.RpcError:
            self._take_queue(call)
            return from_status(call.code(), call.details(), call.trailing_metadata())
        except OverreadError as error:  # the answer is not of this contract
            call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leaves it untyped
            return error
        self._take_queue(call)
        return None

    def _take_queue(self, call: grpc.Call) -> None:
        """Tells the link what the service says of its queue, if it says it sensibly."""
        load = load_of(call.trailing_metadata())
        if load is not None:
            self._link.queue_reported(load.queue_s)

    def _learn(self, exchange: Exchange, fault: OverreadError | None) -> None:
        """A stream that brought verdicts is measured, also when it ran out of time."""
        if exchange.arrivals and (fault is None or isinstance(fault, DeadlinePassed)):
            self._link.succeeded(exchange.arrivals)
        elif isinstance(fault, LinkFault):
            self._link.failed(f"{fault.kind}: {fault.reason}")
