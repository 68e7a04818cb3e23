"""Request second readings from the cloud, and return in time with the answers that came.

Every fault of the link becomes an `EscalationResult` with its reason.

    read -> cut_rois -> attempts, with pauses between them -> EscalationResult
"""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import grpc
import structlog

from edge.budget import Budget
from edge.decide import Plan
from edge.escalation.attempt import Endpoint, Escalation
from edge.escalation.rois import EscalationResult, RoiStates, cut_rois
from edge.escalation.stream import GrpcStream
from edge.link.channel import open_link
from edge.link.estimate import OFF, LinkEstimate
from edge.link.link import Link, Traffic
from edge.settings.core import EdgeSettings
from imaging.preprocess import Preprocessed
from process.backoff import Jitter, pause_s
from protos.deadline import Clock, Deadline
from protos.errors import DeadlinePassed, LinkFault, OverreadError, Unreachable
from protos.messages import Priority, Roi
from protos.overread_pb2_grpc import OverreadStub

log = structlog.get_logger()

RECONNECT_PAUSE_S, FIRST_PAUSE_S, MAX_PAUSE_S = 0.01, 0.1, 1.0


class SecondReader(Protocol):
    """Gives second readings: the cloud, or what replaces it."""

    def estimate(self) -> LinkEstimate:
        """Return what to expect of the link now."""

    def read(
        self,
        plan: Plan,
        box: Preprocessed,
        budget: Budget,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        """Read the ROIs that ``plan`` sends, within ``budget``.

        ``priority`` is that of the study; None for that of the settings.
        """

    def read_rois(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        """Read ROIs that were cut before, by ``deadline``."""


MAX_ATTEMPTS = 3
"""Streams that are opened for one study within its deadline."""


class NoSecondReader:
    """The second reader of a site without a cloud."""

    def estimate(self) -> LinkEstimate:
        """Return that the link is off."""
        return OFF

    def read(self, *_: object) -> EscalationResult:
        """Return no verdict, and that no cloud is configured."""
        return EscalationResult(reason=OFF.reason, switched_off=True)

    read_rois = read


@dataclass(frozen=True)
class Sending:
    """What one stream is about to send to a cloud: the most ROIs, and bytes of voxels."""

    study_key: str
    cloud: str
    rois: int
    bytes: int


OnSending = Callable[[Sending], None]
"""Called before anything of a study is sent; what it raises keeps the study from being sent."""


class Escalator:
    """The second reader at the other end of a channel, used for study after study.

    Args:
        link: learns from every escalation, and admits none while the cloud is unreachable.
        fallback: a second, separate cloud with its link: used while the first is down or refuses.
        on_sending: called with every stream before it is opened.
        jitter: a random number between two bounds.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        link: Link,
        settings: EdgeSettings,
        *,
        fallback: tuple[grpc.Channel, Link] | None = None,
        on_sending: OnSending = lambda _sending: None,
        jitter: Jitter = random.uniform,
    ) -> None:
        clouds = [(channel, link, settings.cloud.address or "")]
        if fallback:
            clouds.append((*fallback, settings.cloud.fallback or ""))
        self._clouds = [(OverreadStub(to), of_cloud, name) for to, of_cloud, name in clouds]
        self._on_sending = on_sending
        self._settings, self._jitter = settings, jitter

    def estimate(self) -> LinkEstimate:
        """Return the estimate of the first available link; wait during the startup grace."""
        for _, link, _ in self._clouds:
            link.wait_until_known()
            if (found := link.estimate()).available:
                return found
        return self.estimate_now()

    def estimate_now(self) -> LinkEstimate:
        """Return the estimate of the first available link, without waiting."""
        estimates = self.estimates_now()
        return next((one for one in estimates if one.available), estimates[0])

    def estimates_now(self) -> list[LinkEstimate]:
        """Return the estimate of each link, the first cloud's first, without waiting."""
        return [link.estimate() for _, link, _ in self._clouds]

    def traffic(self) -> Traffic:
        """Return what went over all links."""
        return sum((link.traffic for _, link, _ in self._clouds), Traffic())

    def read(
        self,
        plan: Plan,
        box: Preprocessed,
        budget: Budget,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        """Return the verdicts that came within ``budget`` less the reserve; raise nothing."""
        deadline = budget.deadline.capped(budget.left_s(self._settings.reserve_s))
        return self._escalate(cut_rois(plan, box), deadline, study_key, priority, counts=True)

    def read_rois(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        """Return the verdicts on ``rois`` that came by ``deadline``; raise nothing.

        Nothing is sent while no link is available. The deadline may be short: missing it does not
        count against the link of a cloud that responded.
        """
        return self._escalate(rois, deadline, study_key, priority, counts=False)

    def _escalate(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,
        study_key: str,
        priority: Priority | None,
        *,
        counts: bool,
    ) -> EscalationResult:
        for _, link, _ in self._clouds:
            link.wait_until_known()
        states = RoiStates(rois)
        if deadline.passed or not states.open:
            return states.result(DeadlinePassed("no time was left for a second reading"), 0)
        urgency = priority or Priority(self._settings.priority)
        endpoints = [self._endpoint(*cloud, urgency) for cloud in self._clouds]
        escalation = Escalation(endpoints, states, deadline, study_key, counts=counts)
        try:
            if not escalation.enter():
                return EscalationResult(reason=self.estimate().why_not)
            fault, attempts = self._attempts(escalation, states, deadline)
        finally:
            escalation.close()
        result = states.result(fault, attempts)
        if isinstance(fault, LinkFault) and states.unanswered and not result.verdicts:
            return replace(result, reason=result.reason + self.estimate_now().silence)
        return result

    def _endpoint(
        self, stub: OverreadStub, link: Link, address: str, priority: Priority
    ) -> Endpoint:
        """Return one cloud; before a stream to it is opened it is said what will be sent."""

        def opened(states: RoiStates, deadline: Deadline, study_key: str) -> GrpcStream:
            rois = states.open.values()
            size = sum(roi.voxels.nbytes for roi in rois)
            self._on_sending(Sending(study_key, address, len(rois), size))
            return GrpcStream(
                stub, self._settings, link, states, deadline, study_key, priority=priority
            )

        return Endpoint(opened, link)

    def _attempts(
        self, escalation: Escalation, states: RoiStates, deadline: Deadline
    ) -> tuple[OverreadError | None, int]:
        """Try until all is answered or no retry helps; return the last fault and the attempts.

        A retry carries the same study key and only the ROIs without an answer. The other cloud
        gets it at once; a cloud that was tried before, after a pause.
        """
        attempts = 0
        while True:
            fault, attempts = escalation.attempt(), attempts + 1
            if attempts == MAX_ATTEMPTS or deadline.passed or not states.open:
                return fault, attempts
            if escalation.fail_over(fault):
                continue
            wait_s = self._pause_s(attempts, fault)
            if not states.is_retryable(fault) or wait_s > deadline.remaining_s:
                return fault, attempts
            time.sleep(wait_s)

    def _pause_s(self, attempts: int, fault: OverreadError | None) -> float:
        """Return the pause after this number of attempts: random, up to a bound that doubles.

        It is longer by the time that the cloud names in ``fault``.

        The pauses after a broken connection are short, so that a dead cloud costs little time.
        """
        first_s = RECONNECT_PAUSE_S if isinstance(fault, Unreachable) else FIRST_PAUSE_S
        least_s = (fault.retry_s if fault is not None else None) or 0.0
        return least_s + pause_s(attempts, first_s, MAX_PAUSE_S, self._jitter, least=0.0)


def open_second_reader(
    settings: EdgeSettings,
    held: ExitStack,
    clock: Clock,
    on_sending: OnSending = lambda _sending: None,
) -> SecondReader:
    """Open the second reader of the settings; ``held`` closes it.

    ``on_sending`` is called with every stream before it is opened.

    Raises:
        BadSettings: a certificate or key cannot be used.
    """
    cloud = settings.cloud
    if cloud.address is None:
        if cloud.fallback is not None:
            log.warning("cloud.fallback has no effect without cloud.address")
        return NoSecondReader()
    if cloud.tls.ca is None and cloud.remote:
        log.warning("ROIs are sent unencrypted: set cloud.tls.ca", clouds=cloud.remote)

    def opened(address: str) -> tuple[grpc.Channel, Link]:
        link = Link(clock=clock)
        return open_link(address, link, settings, held, clock), link

    fallback = opened(cloud.fallback) if cloud.fallback else None
    return Escalator(*opened(cloud.address), settings, fallback=fallback, on_sending=on_sending)
