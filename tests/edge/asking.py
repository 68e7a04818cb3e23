"""An escalator at the other end of a channel, and what comes back for candidates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from edge.budget import Budget
from edge.escalation.client import CHANNEL_OPTIONS, Escalator
from edge.escalation.rois import EscalationResult
from edge.escalation.stream import EscalationSettings
from edge.link.link import Link
from protos.deadline import Deadline
from protos.messages import Priority
from tests.edge.cases import SHAPE, box, plan_of

RESERVE_S = 0.2


@contextmanager
def escalator(
    address: str, link: Link | None = None, reserve_s: float = RESERVE_S
) -> Iterator[Escalator]:
    """An escalator at the other end of a channel of its own; its pauses are 10 ms at most."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        asking = EscalationSettings(SHAPE, reserve_s, priority=Priority.STAT)
        yield Escalator(channel, link or Link(), asking, jitter=lambda *_: 0.01)


def ask(
    address: str, *scores: float, budget_s: float = 60.0, link: Link | None = None
) -> EscalationResult:
    """What comes back for candidates of these scores, with time enough for a slow machine."""
    with escalator(address, link) as second:
        return second.read(plan_of(*scores), box(), Budget(Deadline.after(budget_s)), "key-1")


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
