"""What an escalation teaches the link, and how the link keeps it from asking."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest

from edge.link import Link
from protos.errors import (
    DeadlineUnmeetable,
)
from protos.messages import Refusal, Roi, Verdict
from tests.edge.asking import RESERVE_S, ask, free_port
from tests.edge.fake_cloud import FakeCloud, sure


def test_no_time_left_asks_nobody() -> None:
    """When only the reserve is left, no stream is opened, and the link is not blamed."""
    link = Link(failures=1)
    with FakeCloud() as cloud:
        came = ask(cloud.address, 0.4, budget_s=RESERVE_S / 2, link=link)
    assert (came.attempts, cloud.headers) == (0, [])
    assert came.reason == "DeadlinePassed: no time was left to ask"
    assert link.estimate().available


def test_link_learns_from_each_study() -> None:
    """The cloud's queue estimate reaches the link; an unreachable cloud opens its breaker."""
    link = Link(failures=1, clock=lambda: 0.0)
    with FakeCloud(queue_s="0.25") as cloud:
        ask(cloud.address, 0.4, link=link)
    assert link.estimate().middle.queue_s == 0.25
    ask(cloud.address, 0.4, link=link)
    assert not link.estimate().available


@pytest.mark.parametrize("said", ["soon", "nan", "inf", "-1"])
def test_senseless_queue_estimate_is_ignored(said: str) -> None:
    """Trailing metadata that is no time changes nothing."""
    link = Link(clock=lambda: 0.0)
    with FakeCloud(queue_s=said) as cloud:
        came = ask(cloud.address, 0.4, link=link)
    assert (came.reason, link.estimate().middle.queue_s) == ("", 0.0)


def test_open_breaker_asks_nobody() -> None:
    """While the link is given up nothing is sent, and the reason is that of the breaker."""
    link = Link(failures=1, clock=lambda: 0.0)
    link.failed("Unreachable: refused")
    with FakeCloud() as cloud:
        came = ask(cloud.address, 0.4, link=link)
    assert (came.attempts, cloud.headers) == (0, [])
    assert came.reason == "Unreachable: refused; not asked again for 30 s"


def test_deadline_missed_without_an_answer_opens_the_breaker() -> None:
    """A cloud that takes the study and stays silent is as good as none."""
    over, link = threading.Event(), Link(failures=1)

    def stall(roi: Roi) -> Verdict | Refusal:
        over.wait(60)
        return sure(roi)

    with FakeCloud(answer=stall) as cloud:
        came = ask(cloud.address, 0.4, budget_s=1.5, link=link)
        over.set()
    assert came.reason.startswith("DeadlinePassed: ")
    assert "nothing was answered within" in link.estimate().reason


def test_a_cloud_that_refuses_is_there_all_the_same() -> None:
    """A probe that meets a full queue closes the breaker: the link is back."""
    now_s = [0.0]
    link = Link(failures=1, clock=lambda: now_s[0])
    link.failed("Unreachable: refused")
    now_s[0] = 31.0
    with FakeCloud(faults=[DeadlineUnmeetable("late", 9.0)]) as cloud:
        came = ask(cloud.address, 0.4, link=link)
    assert came.reason == "DeadlineUnmeetable: late"
    assert (link.estimate().available, link.estimate().probing) == (True, False)


def test_round_trip_is_measured_apart_from_reading() -> None:
    """A cloud on loopback that takes 0.4 s to answer is near, and slow."""
    link = Link()

    def slowly(roi: Roi) -> Verdict | Refusal:
        time.sleep(0.4)
        return replace(sure(roi), compute_s=0.4)

    with FakeCloud(answer=slowly) as cloud:
        for _ in range(3):
            ask(cloud.address, 0.4, link=link)
    assert link.estimate().middle.roi_s == 0.4
    assert link.estimate().middle.round_trip_s < 0.4


def test_a_mute_cloud_is_given_up_long_before_the_deadline() -> None:
    """It is asked once, what it never took in tells nothing of throughput, and it is in doubt."""
    link = Link()
    link.found(None)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        came = ask(f"127.0.0.1:{mute.getsockname()[1]}", 0.4, link=link)
    assert (came.attempts, sorted(came.verdicts)) == (1, [])
    assert came.reason == "DeadlinePassed: there was no sign of the cloud within 1.0 s"
    assert link.estimate().middle.bytes_per_s == Link().estimate().middle.bytes_per_s
    assert link.doubted.is_set()


def test_what_was_not_answered_in_time_is_slow_though_some_of_it_was() -> None:
    """One of three regions came: the link is not given up, but three more are not expected soon."""
    over, link = threading.Event(), Link(failures=1)

    def stall(roi: Roi) -> Verdict | Refusal:
        if roi.roi_id != 0:
            over.wait(60)
        return sure(roi)

    with FakeCloud(answer=stall) as cloud:
        came = ask(cloud.address, 0.5, 0.45, 0.4, budget_s=3.0, link=link)
        over.set()
    assert (list(came.verdicts), link.estimate().available) == ([0], True)
    assert link.estimate().completion_s(3, 3 * 48**3) > 2.0


def test_a_slow_cloud_that_was_heard_leaves_the_wire_its_good_name() -> None:
    """The wait of a missed deadline is the cloud's queue, not seconds a byte."""
    over, link = threading.Event(), Link()

    def stall(roi: Roi) -> Verdict | Refusal:
        over.wait(60)
        return sure(roi)

    with FakeCloud(answer=stall) as cloud:
        ask(cloud.address, 0.5, budget_s=3.0, link=link)
        over.set()
    slow, unknown = link.estimate().slow, Link().estimate().slow
    assert slow.bytes_per_s == unknown.bytes_per_s
    assert slow.queue_s > 2.0


def test_a_cloud_that_cannot_be_reached_was_not_heard() -> None:
    """A refused connection is no sign of it."""
    link = Link()
    ask(f"127.0.0.1:{free_port()}", 0.4, link=link)
    assert link.estimate().silent_s is None
