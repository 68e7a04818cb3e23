"""A cloud that is asked first, and one that has room for a part."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from edge import sending
from edge.link import Link
from protos import overread_pb2 as pb
from protos.codec import encode_roi
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable
from protos.messages import Roi
from tests.edge.asking import ask
from tests.edge.fake_cloud import FakeCloud

SCORES = (0.5, 0.45, 0.4)
REASON = "the cloud had room for 1 of 3 regions"


def busy_link() -> Link:
    """One whose cloud told of a queue of 30 s."""
    link = Link(clock=lambda: 0.0)
    link.queue_reported(30.0)
    return link


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The regions that were handed to gRPC."""
    seen: list[int] = []

    def note(roi: Roi) -> object:
        seen.append(roi.roi_id)
        return encode_roi(roi)

    monkeypatch.setattr(sending, "encode_roi", note)
    return seen


def test_a_busy_cloud_that_refuses_is_sent_no_region(sent: list[int]) -> None:
    """It is asked with the header alone; the reason is its own."""
    with FakeCloud(turns_away=[DeadlineUnmeetable("late", 9.0)]) as cloud:
        came = ask(cloud.address, *SCORES, link=busy_link())
    assert (came.reason, came.attempts) == ("DeadlineUnmeetable: late", 1)
    assert (sent, cloud.headers[0].roi_count) == ([], 3)


def test_a_busy_cloud_gets_the_regions_when_it_has_taken_the_header(sent: list[int]) -> None:
    """None before its first sign, all after it; what one waits for is no throughput."""
    before: list[int] = []

    def admit() -> None:
        over = Deadline.after(0.2)
        while not sent and not over.passed:
            time.sleep(0.01)
        before.append(len(sent))

    with FakeCloud(admits=admit) as cloud:
        came = ask(cloud.address, *SCORES, link=busy_link())
    assert (before, sent) == ([0], [0, 1, 2])
    assert (sorted(came.verdicts), came.reason) == ([0, 1, 2], "")


def test_only_what_the_cloud_has_room_for_is_sent(sent: list[int]) -> None:
    """The most valuable; the others are refused, and the stream ends well, with no other try."""
    with FakeCloud(accepts=1) as cloud:
        came = ask(cloud.address, *SCORES, link=busy_link())
    assert (sent, cloud.asked) == ([0], [[0]])
    assert (list(came.verdicts), sorted(came.refusals), came.attempts) == ([0], [1, 2], 1)
    assert came.reason == f"2 regions refused: DeadlineUnmeetable: {REASON}"
    assert came.refused


def test_a_cloud_without_any_room_ends_it() -> None:
    """All are refused, none was sent, and nobody waits for the deadline."""
    with FakeCloud(accepts=0) as cloud:
        came = ask(cloud.address, *SCORES, link=busy_link())
    assert (came.verdicts, sorted(came.refusals), came.attempts) == ({}, [0, 1, 2], 1)


def test_what_is_on_its_way_already_is_answered(sent: list[int]) -> None:
    """A cloud that is not known to be busy is not asked first; what has not gone stays here."""

    def wait_for_the_first() -> None:
        while not sent:
            time.sleep(0.01)

    with FakeCloud(accepts=1, admits=wait_for_the_first) as cloud:
        came = ask(cloud.address, *SCORES)
    assert cloud.asked == [sent]
    assert sorted(came.verdicts) == sent
    assert sorted(came.refusals) == [i for i in range(3) if i not in sent]


def test_a_mute_cloud_leaves_no_thread_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the regions is let go when the stream is given up, not at the deadline."""
    over, let_go, requests = threading.Event(), threading.Event(), sending.Sending.requests

    def noted(self: sending.Sending) -> Iterator[pb.ReadRequest]:
        yield from requests(self)
        let_go.set()

    monkeypatch.setattr(sending.Sending, "requests", noted)
    with FakeCloud(admits=lambda: over.wait(60.0)) as cloud:
        came = ask(cloud.address, *SCORES, budget_s=600.0, link=busy_link())
        assert let_go.wait(30.0)
        over.set()
    assert came.reason.startswith("DeadlinePassed: there was no sign of the cloud")


@pytest.mark.parametrize(
    ("round_trip_s", "least_s", "most_s"),
    [(None, 50.0, 59.8), (20.0, 30.0, 39.8), (900.0, 25.0, 29.9)],
)
def test_the_way_there_and_back_is_not_the_cloud_s(
    round_trip_s: float | None, least_s: float, most_s: float
) -> None:
    """Of 59.8 s a measured round trip is kept, half of them at most."""
    link = Link(clock=lambda: 0.0)
    link.found(round_trip_s)
    with FakeCloud() as cloud:
        ask(cloud.address, 0.5, link=link)
    assert least_s < cloud.headers[0].budget_s <= most_s
