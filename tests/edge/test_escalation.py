"""Escalations over two clouds, of which one is slow, broken or gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from edge.budget import Budget
from edge.channel import OPTIONS
from edge.escalate import Asking, Escalator
from edge.link import Link
from protos.deadline import Deadline
from protos.errors import Draining
from protos.messages import Refusal, Roi, Verdict
from tests.edge.cases import SHAPE, box, plan_of
from tests.edge.fake_cloud import FakeCloud, sure

RESERVE_S = 0.2


@contextmanager
def hedged(
    first: str, other: str, link: Link, other_link: Link | None = None
) -> Iterator[Escalator]:
    """An escalator with a second cloud."""
    with (
        grpc.insecure_channel(first, options=OPTIONS) as channel,
        grpc.insecure_channel(other, options=OPTIONS) as second,
    ):
        hedge = (second, other_link or Link())
        yield Escalator(channel, link, Asking(SHAPE, RESERVE_S, attempts=1), hedge=hedge)


def test_slow_cloud_is_hedged_and_cancelled() -> None:
    """The other cloud answers under the same key; the first's stream is given up at once."""
    over, gone, link = threading.Event(), threading.Event(), Link()

    def stall(roi: Roi) -> Verdict | Refusal:
        over.wait(60)
        return sure(roi)

    with FakeCloud(answer=stall) as slow, FakeCloud() as fast:
        with hedged(slow.address, fast.address, link) as second:
            slow.on_end = gone.set
            came = second.read(plan_of(0.4, 0.5), box(), Budget(Deadline.after(60.0)), "key-1")
        assert gone.wait(30)  # long before its 60 s
        over.set()
    assert (sorted(came.verdicts), came.reason, came.attempts) == ([0, 1], "", 1)
    assert [header.study_key for header in slow.headers + fast.headers] == ["key-1", "key-1"]
    assert link.estimate().available


def test_fast_cloud_is_not_hedged() -> None:
    """The other cloud hears nothing of it."""
    with FakeCloud() as fast, FakeCloud() as other:
        with hedged(fast.address, other.address, Link()) as second:
            came = second.read(plan_of(0.4), box(), Budget(Deadline.after(60.0)), "key-1")
        assert other.headers == []
    assert list(came.verdicts) == [0]


def test_only_what_is_open_is_asked_of_the_other_cloud() -> None:
    """After one verdict the first breaks; the other is asked for the rest."""
    with (
        FakeCloud(faults=[Draining("stopping")], fault_after=1) as first,
        FakeCloud() as other,
        hedged(first.address, other.address, Link()) as second,
    ):
        came = second.read(plan_of(0.5, 0.4), box(), Budget(Deadline.after(60.0)), "key-1")
    assert (first.asked, other.asked) == ([[0]], [[1]])
    assert (sorted(came.verdicts), came.reason) == ([0, 1], "")


def test_other_cloud_stands_in_for_one_that_cannot_be_reached() -> None:
    """Each link has a breaker of its own: with the first open, the other is asked alone."""
    link, other_link = Link(failures=1), Link()
    with FakeCloud() as gone:
        pass
    with (
        FakeCloud() as other,
        hedged(gone.address, other.address, link, other_link) as second,
    ):
        for _ in range(2):
            came = second.read(plan_of(0.4), box(), Budget(Deadline.after(60.0)), "key")
            assert list(came.verdicts) == [0]
        assert not link.estimate().available
        assert second.estimate().available
    assert len(other.headers) == 2
