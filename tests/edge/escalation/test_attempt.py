"""What ends an attempt, and which cloud gets what it left open."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import pytest

from edge.escalation.attempt import Endpoint, Escalation
from edge.escalation.client import Escalator
from edge.escalation.rois import EscalationResult, RoiStates, cut_rois
from edge.escalation.stream import Received, StreamTiming
from edge.link.link import Link
from edge.store.pending import PendingStep
from protos.deadline import Deadline
from protos.errors import (
    DeadlinePassed,
    DeadlineUnmeetable,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    OverreadError,
)
from tests.edge.builders import SHAPE, Site, box, plan_of
from tests.edge.fake_cloud import FakeCloud, escalator, free_port, read, sure

LONG_S = 60.0


class Scripted:
    """A stream of two ROIs: gives its verdicts, then hangs until it is cancelled, or raises."""

    sent, load = True, None

    def __init__(self, verdicts: Sequence[int] = (), fault: Exception | None = None) -> None:
        self.rois = cut_rois(plan_of(0.5, 0.4), box(), SHAPE)
        self.timing = StreamTiming(self.rois, time.monotonic)
        self.verdicts, self.fault, self.cancelled = verdicts, fault, threading.Event()

    def listen(self) -> Iterator[Received]:
        for roi_id in self.verdicts:
            yield self.timing.received(sure(self.rois[roi_id]), 100)
        if self.fault is not None:
            raise self.fault
        assert self.cancelled.wait(LONG_S)

    def cancel(self) -> None:
        self.cancelled.set()

    def attempt(self, link: Link, deadline_s: float = LONG_S) -> OverreadError | None:
        """The fault that ended it."""
        states, endpoint = RoiStates(self.rois), Endpoint(lambda *_: self, link)
        escalation = Escalation([endpoint], states, Deadline.after(deadline_s), "key-1")
        assert escalation.enter()
        try:
            return escalation.attempt()
        finally:
            escalation.close()


def test_the_deadline_ends_a_stream_that_had_begun_and_what_came_is_kept() -> None:
    """One answer is enough not to count as silent."""
    link, stream = Link(), Scripted([0])
    link.response_timeout_s = lambda: 0.1  # type: ignore[method-assign] # of a near cloud
    fault = stream.attempt(link, deadline_s=0.5)
    assert isinstance(fault, DeadlinePassed)
    assert fault.reason == "the answer did not arrive before the deadline"
    assert stream.cancelled.is_set()
    assert len(stream.timing.arrivals) == 1


def test_a_stream_that_lingers_after_the_last_answer_is_cancelled() -> None:
    stream = Scripted([0, 1])
    assert stream.attempt(Link()) is None
    assert stream.cancelled.is_set()


def test_an_exception_that_is_no_fault_of_the_cloud_is_raised() -> None:
    link = Link()
    with pytest.raises(ZeroDivisionError):
        Scripted([], ZeroDivisionError("by zero")).attempt(link)
    assert link.estimate().available


def with_fallback(
    first: str, other: str, link: Link | None = None, other_link: Link | None = None
) -> AbstractContextManager[Escalator]:
    return escalator(first, link or Link(), fallback=(other, other_link or Link()))


def read_by(
    first: FakeCloud, other: FakeCloud, *scores: float, links: Sequence[Link] = ()
) -> EscalationResult:
    """What comes back for candidates of these scores, over these links or new ones."""
    with with_fallback(first.address, other.address, *links) as second:
        return read(second, *scores)


def dead() -> str:
    return f"127.0.0.1:{free_port()}"


def test_a_cloud_that_is_down_before_the_study_is_replaced() -> None:
    """Each link has its own breaker: once the first's is open, the other is used alone."""
    link = Link(failures=1)
    with FakeCloud() as other, with_fallback(dead(), other.address, link) as second:
        came = [read(second, 0.4) for _ in range(2)]
        assert not link.estimate().available
        assert second.estimate().available
    assert [(list(one.verdicts), one.attempts) for one in came] == [([0], 2), ([0], 1)]


def test_a_silent_cloud_is_replaced_long_before_the_deadline(silent: str) -> None:
    link = Link()
    link.up(None)
    with FakeCloud() as other, with_fallback(silent, other.address, link) as second:
        came = read(second, 0.4)
    assert (list(came.verdicts), came.attempts) == ([0], 2)
    assert link.suspect.is_set()
    # what it never took in tells nothing of throughput
    assert link.estimate().middle.bytes_per_s == Link().estimate().middle.bytes_per_s


def test_a_cloud_that_dies_during_the_study_leaves_the_rest_to_the_other() -> None:
    with FakeCloud(dies_after=1) as first, FakeCloud() as other:
        came = read_by(first, other, 0.5, 0.45, 0.4)
    assert other.asked == [[1, 2]]
    assert (sorted(came.verdicts), came.reason, came.attempts) == ([0, 1, 2], "", 2)
    (told, rest) = first.headers + other.headers
    assert told.study_key == rest.study_key
    assert rest.budget_s < told.budget_s  # what is left


@pytest.mark.parametrize(
    "fault", [Overloaded("full"), DeadlineUnmeetable("late"), ModelFailed("nan")]
)
def test_a_study_that_the_first_refuses_is_sent_to_the_other_at_once(fault: OverreadError) -> None:
    fault.retry_s = 3600.0  # of the first
    with FakeCloud(turns_away=[fault]) as first, FakeCloud() as other:
        came = read_by(first, other, 0.4)
    assert (list(came.verdicts), came.reason, came.attempts) == ([0], "", 2)


def test_rois_that_the_first_cannot_answer_in_time_are_sent_to_the_other() -> None:
    link = Link(clock=lambda: 0.0)
    link.queue_reported(30.0)
    with FakeCloud(accepts=1) as busy, FakeCloud() as idle:
        came = read_by(busy, idle, 0.5, 0.45, 0.4, links=[link])
    assert (busy.asked, idle.asked) == ([[0]], [[1, 2]])
    assert (sorted(came.verdicts), came.refusals, came.reason) == ([0, 1, 2], {}, "")


def test_a_request_that_is_wrong_is_sent_to_no_other_cloud() -> None:
    with FakeCloud(turns_away=[InvalidRequest("no")]) as first, FakeCloud() as other:
        came = read_by(first, other, 0.4)
        assert other.headers == []
    assert (came.verdicts, came.attempts) == ({}, 1)


def test_where_both_clouds_are_down_the_reads_are_pending(site: Site) -> None:
    with with_fallback(dead(), dead()) as second:
        record = site.study("a", second=second)
    report = site.report("a")
    assert report["status"] == "provisional"
    assert "the cloud cannot be reached" in report["second_reading_reason"]
    assert site.store.pending.get(record.id).step is PendingStep.PENDING
