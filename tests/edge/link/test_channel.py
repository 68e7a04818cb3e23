"""Looks at a cloud that is scripted, or real and on loopback."""

import queue
import socket
import threading
import time
from functools import partial

import grpc
import structlog

from edge.link.channel import (
    CHANNEL_OPTIONS,
    DIAGNOSE_EVERY_S,
    Diagnosis,
    HealthCheck,
    HealthMonitor,
    start_health_check,
)
from edge.link.link import NO_RESPONSE_YET, Link
from edge.settings.core import load_settings
from protos.errors import DeadlinePassed, LinkFault, Unreachable
from tests.edge.builders import HandClock
from tests.edge.fake_cloud import FakeCloud, free_port
from tests.edge.running_agent import wait_until

LONG_S = 60.0


class Scripted:
    """Gives each health check the next answer that is put in; ``cancel`` ends a wait for one."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[LinkFault | None] = queue.SimpleQueue()
        self.checks = 0

    def __call__(self, _timeout_s: float) -> HealthCheck:
        self.checks += 1
        return HealthCheck(self.fault, self.cancel)

    def fault(self) -> LinkFault | None:
        return self.answers.get(timeout=LONG_S)

    def cancel(self) -> None:
        self.answers.put(Unreachable("cancelled"))


def test_a_cloud_goes_down_and_comes_up_again_and_the_log_says_so() -> None:
    """Once for each change, whatever the number of checks."""
    link, cloud = Link(), Scripted()
    for answer in ("", "", "away", "away", "refused"):
        cloud.answers.put(Unreachable(answer) if answer else None)
    monitor = HealthMonitor(cloud, link, 0.01, cloud="reader:1")
    with structlog.testing.capture_logs() as logs, monitor:
        wait_until(lambda: link.estimate().reason == "the cloud cannot be reached (refused)")
        assert not link.enter()
        cloud.answers.put(None)
        wait_until(lambda: link.estimate().available and len(logs) == 4)
    assert link.estimate().silent_s is not None
    assert [(log["event"], log["cloud"], log.get("reason")) for log in logs] == [
        ("cloud is up", "reader:1", None),
        ("cloud is down", "reader:1", "away"),
        ("cloud is down", "reader:1", "refused"),
        ("cloud is up", "reader:1", None),
    ]


def test_a_cloud_that_does_not_answer_at_first_is_not_waited_for() -> None:
    """The first study after a start goes on without it, and the next asks when it is there."""
    link, cloud = Link(), Scripted()
    with HealthMonitor(cloud, link, LONG_S, startup_grace_s=0.0):
        assert link.estimate().reason == NO_RESPONSE_YET
        assert not link.enter()
        cloud.answers.put(None)
        wait_until(link.enter)


def test_a_study_waits_for_a_cloud_that_is_about_to_answer() -> None:
    """As long as the watch was given for that, and no longer once it is known."""
    link, cloud = Link(), Scripted()
    with HealthMonitor(cloud, link, LONG_S, startup_grace_s=LONG_S):
        threading.Timer(0.05, cloud.answers.put, [None]).start()
        link.wait_until_known()
        assert link.estimate().available


def test_a_failed_escalation_starts_a_health_check_at_once() -> None:
    link, cloud = Link(), Scripted()
    with HealthMonitor(cloud, link, LONG_S):
        cloud.answers.put(None)
        wait_until(lambda: link.estimate().silent_s is not None)
        link.failed("Unreachable: lost")
        wait_until(lambda: cloud.checks == 2)
        cloud.answers.put(DeadlinePassed("no answer"))
        wait_until(lambda: link.estimate().reason == "the time ran out (no answer)")


def test_no_health_check_runs_while_an_escalation_receives_answers() -> None:
    """Its upload may saturate a narrow link, and its answers say more."""
    link, cloud = Link(), Scripted()
    assert link.enter()
    link.responded()
    link.down("Unreachable: no answer")
    assert link.estimate().available
    with HealthMonitor(cloud, link, 0.001):
        time.sleep(0.02)
        assert cloud.checks == 0
        link.inconclusive()
        wait_until(lambda: cloud.checks == 1)


def test_a_check_that_fails_by_itself_leaves_the_link_up_and_the_next_one_counts() -> None:
    """Studies may ask, and find out for themselves."""
    link, cloud, faults = Link(), Scripted(), 2
    link.down("Unreachable: refused")

    def broken(timeout_s: float) -> HealthCheck:
        nonlocal faults
        faults -= 1
        if faults >= 0:
            raise RuntimeError("a fault of ours")
        return cloud(timeout_s)

    with structlog.testing.capture_logs() as logs, HealthMonitor(broken, link, 0.001):
        wait_until(lambda: link.estimate().available)
        cloud.answers.put(Unreachable("refused"))
        wait_until(lambda: not link.estimate().available)
    failed = "health check failed; each study will probe the cloud itself"
    assert [log["event"] for log in logs].count(failed) == 1


def test_only_a_second_health_check_measures_the_round_trip() -> None:
    """Connecting is a part of the first; of the later ones one a minute is taken in."""
    link, cloud = Link(), Scripted()
    before = link.estimate().middle.round_trip_s
    with HealthMonitor(cloud, link, 0.001):
        cloud.answers.put(None)
        wait_until(lambda: cloud.checks == 2)
        assert link.estimate().middle.round_trip_s == before
        cloud.answers.put(None)
        wait_until(lambda: cloud.checks == 3)
        taken = link.estimate().middle.round_trip_s
        assert taken != before
        cloud.answers.put(None)
        wait_until(lambda: cloud.checks == 4)
        assert link.estimate().middle.round_trip_s == taken


def channel_to(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


def test_health_checks_over_grpc(silent: str) -> None:
    with FakeCloud() as cloud, channel_to(cloud.address) as channel:
        assert start_health_check(channel, LONG_S).fault() is None
    with channel_to(silent) as channel:
        assert isinstance(start_health_check(channel, 0.05).fault(), LinkFault)
        # a monitor ends while its check waits
        with HealthMonitor(partial(start_health_check, channel), Link(), LONG_S):
            pass
    assert "health monitor" not in [thread.name for thread in threading.enumerate()]
    with channel_to(f"127.0.0.1:{free_port()}") as channel:
        assert isinstance(start_health_check(channel, LONG_S).fault(), Unreachable)


def test_a_diagnosis_is_kept_for_a_while() -> None:
    """Each opens a connection, and a cloud that is down is checked every second."""
    clock, connections = HandClock(), list[None]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(None)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        diagnosis = Diagnosis(f"127.0.0.1:{server.getsockname()[1]}", load_settings(), clock)
        for _ in range(5):
            assert diagnosis.reason() == ""
        assert len(connections) == 1
        clock.now_s += DIAGNOSE_EVERY_S
        diagnosis.reason()
        assert len(connections) == 2
        server.shutdown(socket.SHUT_RDWR)
