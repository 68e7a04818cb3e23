"""The agent: every study once, whatever kills it, fills its disk or locks its database."""

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.agent.study import MAX_ATTEMPTS
from edge.atomic_files import move as real_move
from edge.audit import Event
from edge.folders import AlreadyRunning, exclusive
from edge.job import Job
from edge.pipeline import PersistPending, StudyResult
from edge.report.compose import AMENDED_LATER, NOT_AMENDED
from edge.run import draining, run_agent
from edge.store.pending import PendingStep
from edge.store.record import Step
from edge.telemetry import EdgeTelemetry
from evaluation.world import settings_in
from tests.edge.builders import (
    UNHURRIED,
    HandClock,
    SilentCloud,
    pipeline_of,
    put,
    put_all,
    report_in,
    report_of,
)
from tests.edge.running_agent import (
    PATIENCE_S,
    Killed,
    assert_amended_once,
    assert_each_once,
    drain,
    full_at,
    quick_read,
    reading,
    start,
    statuses,
    wait_until,
    whereabouts,
    work_off,
)
from tests.edge.trail.test_agent import facts, of_studies, verified


@pytest.mark.parametrize(("amends", "says"), [(False, NOT_AMENDED), (True, AMENDED_LATER)])
def test_only_an_agent_says_that_its_report_will_be_amended(
    amends: bool, says: str, tmp_path: Path
) -> None:
    pipeline = pipeline_of(SilentCloud())
    own = replace(pipeline, provenance=replace(pipeline.provenance, amends=amends))
    assert report_of(own, tmp_path).second_reading_reason.endswith(f"; {says}")


def test_every_study_gets_its_report_and_bad_ones_are_quarantined_with_a_reason(
    tmp_path: Path, notified: Callable[[], set[str]]
) -> None:
    for name, text in (("a b", "x"), ("Ünïcode 漢", "x"), ("c", "bad"), ("d", "boom"), ("e", "x")):
        put(tmp_path / "inbox", name, text)
    work_off(tmp_path)
    assert notified() == {"READY=1", "WATCHDOG=1"}  # systemd restarts an agent that hangs
    assert_each_once(tmp_path, {"a b", "Ünïcode 漢", "e"}, {"c", "d"})
    reasons = {reason["study"]: reason for reason in reasons_in(tmp_path)}
    said = [reasons["c"][key] for key in ("kind", "file", "reason")]
    assert said == ["NotCt", "0.dcm", "this is no CT"]
    assert Path(reasons["c"]["report"]).is_file()
    assert (tmp_path / "state" / "quarantine" / reasons["c"]["study_key"]).is_dir()
    assert reasons["d"]["kind"] == "InternalError"
    assert "Traceback" in reasons["d"]["reason"]
    assert "a fault in the pipeline" in reasons["d"]["reason"]
    assert "Traceback" not in (tmp_path / "outbox" / "d" / "report.html").read_text()


def reasons_in(root: Path) -> list[dict[str, Any]]:
    files = (root / "state" / "quarantine").glob("*/reason.json")
    return [json.loads(path.read_text()) for path in files]


def test_studies_of_one_name_get_a_report_each(tmp_path: Path) -> None:
    (tmp_path / "outbox" / "a").mkdir(parents=True)
    for _ in range(2):
        put(tmp_path / "inbox", "a")
        work_off(tmp_path)
    assert statuses(tmp_path) == {"a-2": "final", "a-3": "final"}
    assert list((tmp_path / "outbox" / "a").iterdir()) == []


def test_the_budget_of_a_study_runs_while_others_are_read(tmp_path: Path) -> None:
    clock, jobs = HandClock(), list[Job]()
    put_all(tmp_path / "inbox", a="x", b="x", c="x")

    def wait(job: Job) -> None:
        jobs.append(job)
        clock.sleep(6.0)
        if len(jobs) == 2:
            raise OSError(errno.ENOSPC, "no room")

    start_s = clock()
    work_off(tmp_path, reading(wait), clock=clock)
    assert [job.source.name for job in jobs] == ["a", "b", "b", "c"]
    assert {job.since_s for job in jobs} == {start_s}


def test_the_budget_of_a_study_claimed_by_an_earlier_process_begins_with_this_one(
    tmp_path: Path,
) -> None:
    put(tmp_path / "inbox", "a")
    clock, since_s = HandClock(), list[float | None]()

    def wait(job: Job) -> None:
        since_s.append(job.since_s)
        clock.sleep(100.0)
        if len(since_s) == 1:
            raise Killed

    with pytest.raises(Killed):
        work_off(tmp_path, reading(wait), clock=clock)
    work_off(tmp_path, reading(wait), clock=clock)
    assert since_s == [100.0, 200.0]


def test_a_study_that_kills_the_process_is_rejected_in_the_end(tmp_path: Path) -> None:
    put_all(tmp_path / "inbox", a="x", b="x")
    deaths: list[str] = []

    def die(job: Job) -> None:
        if job.source.name == "a":
            deaths.append(job.study_key)
            raise Killed

    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(Killed):
            work_off(tmp_path, reading(die))
    work_off(tmp_path, reading(die))
    assert len(deaths) == MAX_ATTEMPTS
    assert_each_once(tmp_path, {"b"}, {"a"})
    (reason,) = reasons_in(tmp_path)
    assert reason["kind"] == "RepeatedCrash"


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> EdgeTelemetry:
    """The metrics of the agent that the test runs."""
    telemetry = EdgeTelemetry()
    monkeypatch.setattr("edge.run.EdgeTelemetry", lambda: telemetry)
    return telemetry


def test_every_report_that_goes_out_is_counted_once(
    tmp_path: Path, telemetry: EdgeTelemetry
) -> None:
    put_all(tmp_path / "inbox", a="x", b="bad", c="boom")
    work_off(tmp_path, on_step=full_at(Step.QUARANTINING, times=2))
    counted = telemetry.registry.get_sample_value
    assert counted("overread_edge_studies_total", {"status": "final"}) == 1
    assert counted("overread_edge_studies_total", {"status": "rejected"}) == 2


def test_a_report_that_the_agent_writes_is_late_by_the_wait_and_the_failed_reading(
    tmp_path: Path, telemetry: EdgeTelemetry
) -> None:
    """It has a ledger of the two, which the metrics have too."""
    clock = HandClock()
    put_all(tmp_path / "inbox", a="x", b="x")

    def fail(_job: Job) -> None:
        clock.sleep(6.0)
        raise ValueError("a fault in the pipeline")

    work_off(tmp_path, reading(fail), clock=clock)
    ledgers = [
        [(entry["stage"], entry["took_s"]) for entry in report_in(tmp_path, name)["ledger"]]
        for name in "ab"
    ]
    assert ledgers == [[("wait", 0.0), ("failed", 6.0)], [("wait", 6.0), ("failed", 6.0)]]
    assert telemetry.registry.get_sample_value("overread_edge_late_reports_total") == 1


def test_the_backlog_is_measured_before_every_study(
    tmp_path: Path, telemetry: EdgeTelemetry
) -> None:
    seen, clock = list[tuple[float | None, ...]](), HandClock()
    put_all(tmp_path / "inbox", a="pending", b="x")
    gauges = ("claimed_studies", "pending_studies", "suspended_studies", "cloud_available")

    def look(_job: Job) -> None:
        value = telemetry.registry.get_sample_value
        seen.append(tuple(value(f"overread_edge_{name}") for name in gauges))

    work_off(tmp_path, reading(look), clock=clock)
    assert seen == [(2.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)]


def test_a_claim_without_room_counts_as_claimed_and_one_that_fails_as_suspended(
    tmp_path: Path, telemetry: EdgeTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alerts of studies that wait or are held need them."""
    put_all(tmp_path / "inbox", a="x", full="x", held="x")
    seen, value = list[tuple[float | None, ...]](), telemetry.registry.get_sample_value
    faults = {"full": OSError(errno.ENOSPC, "no room"), "held": PermissionError("not yours")}

    def move(source: Path, target: Path) -> None:
        if source.name in faults and not seen:
            raise faults[source.name]
        real_move(source, target)

    def look(_job: Job) -> None:
        names = ("claimed", "suspended")
        seen.append(tuple(value(f"overread_edge_{name}_studies") for name in names))

    monkeypatch.setattr("edge.agent.claim.move", move)
    work_off(tmp_path, reading(look))
    assert seen[0] == (2.0, 1.0)


def test_pending_reads_make_room_while_more_studies_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit a read is given up after every study, not when there are none."""
    limits = replace(UNHURRIED, max_bytes=0.0)
    monkeypatch.setattr("edge.agent.loop.RetryBudget.of", lambda *_: limits)
    put_all(tmp_path / "inbox", a="pending", b="pending", c="pending")
    seen: list[dict[str, str]] = []

    work_off(tmp_path, reading(lambda _job: seen.append(statuses(tmp_path))))
    assert seen == [{}, {"a": "final"}, {"a": "final", "b": "final"}]


def test_two_agents_cannot_share_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "inbox", "a")
    own, apart = settings_in(tmp_path), settings_in(tmp_path / "other")
    refused: list[str] = []

    def start_another(_job: Job) -> None:
        for shared in ("inbox", "outbox", "state_dir"):
            other = apart.model_copy(update={shared: getattr(own, shared)})
            with pytest.raises(AlreadyRunning, match="another agent"):
                run_agent(other, read=quick_read, stop=threading.Event())
            refused.append(shared)

    work_off(tmp_path, reading(start_another))
    assert len(refused) == 3


def test_two_agents_with_one_outbox_lose_no_report_where_no_lock_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share without locks: studies of one name, one sound and one refused, have a report each."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("edge.folders.fcntl.flock", no_locks)
    outbox = tmp_path / "outbox"
    for place, text in (("one", "pixels"), ("two", "bad")):
        put(tmp_path / place / "inbox", "a", text)
        work_off(tmp_path / place, settings={"outbox": outbox})
    assert statuses(tmp_path) == {"a": "final", "a-2": "rejected"}
    assert whereabouts(tmp_path / "one") == {"a": ["done"]}
    assert whereabouts(tmp_path / "two") == {"a": ["quarantine"]}


def test_a_report_folder_that_another_study_took_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Somebody removed the folder of a claimed study, and another agent took its name."""
    put(tmp_path / "inbox", "a")

    with pytest.raises(Killed):
        work_off(tmp_path, reading())
    theirs = tmp_path / "outbox" / "a"
    shutil.rmtree(theirs)
    theirs.mkdir()
    (theirs / ".study-another").touch()
    (theirs / "report.json").write_text('{"rejection": {"kind": "NotCt", "reason": "no CT"}}')
    work_off(tmp_path)
    assert report_in(tmp_path, "a-2")["status"] == "final"
    assert whereabouts(tmp_path) == {"a": ["done"]}
    assert "NotCt" in (theirs / "report.json").read_text()


def read_until_told(job: Job, persist: PersistPending) -> StudyResult:
    """Reads until the agent is told to stop; leaves a file when it begins, and one then."""
    (job.out.parent / "begun").touch()
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        time.sleep(0.001)
    (job.out.parent / "told").touch()
    return quick_read(job, persist)


def read_without_end(job: Job, persist: PersistPending) -> StudyResult:
    read_until_told(job, persist)
    threading.Event().wait(PATIENCE_S)
    raise AssertionError("it was not killed")


def test_sigterm_finishes_the_current_study_and_no_other(tmp_path: Path) -> None:
    put_all(tmp_path / "inbox", a="x", b="x")
    process = start(tmp_path, read=read_until_told)
    wait_until(lambda: (tmp_path / "outbox" / "begun").exists())
    os.kill(process.pid or 0, signal.SIGHUP)  # which does nothing
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert statuses(tmp_path) == {"a": "final"}
    drain(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"], "b": ["done"]}


REACHED = [*(step for step in Step if step is not Step.JOINING), *PendingStep]
"""The steps that studies in one part reach; test_join has those in two."""
ENDS = (Event.READ, Event.REJECTED)


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", REACHED, ids=lambda step: step.value)
def test_killed_at_any_durable_step_no_study_is_lost_or_duplicated(
    tmp_path: Path, step: Step | PendingStep, durable: bool
) -> None:
    """SIGKILL just before or just after each step: the next start ends every study once.

    Pending reads are amended once: every version is there, each verdict is one change. The audit
    trail is sound, also before that start, and has each event once.
    """
    for name, text in (("a", "x"), ("b ü", "bad"), ("c", "boom"), ("d", "pending")):
        put(tmp_path / "inbox", name, text)
    process = start(tmp_path, (step, durable))
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert verified(tmp_path).broken is None
    drain(tmp_path)
    assert_each_once(tmp_path, {"a", "d"}, {"b ü", "c"})
    assert_amended_once(tmp_path / "outbox" / "d")
    assert verified(tmp_path).broken is None
    once = [[e for e in events if e in ENDS] for events in of_studies(tmp_path).values()]
    assert sorted(once) == [[Event.READ]] * 2 + [[Event.REJECTED]] * 2
    versions = report_in(tmp_path, "d")["version"]
    assert [one["version"] for one in facts(tmp_path, Event.AMENDED)] == [*range(2, versions + 1)]


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    put(tmp_path / "inbox", "a")
    process = start(tmp_path, read=read_without_end)
    wait_until(lambda: (tmp_path / "outbox" / "begun").exists())
    process.terminate()
    wait_until(lambda: (tmp_path / "outbox" / "told").exists())
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGTERM
    drain(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"]}


def test_a_signal_in_the_midst_of_a_wait_does_not_meet_the_events_lock() -> None:
    stop = threading.Event()
    with draining(stop):
        with stop._cond:  # type: ignore[attr-defined]  # the lock that a wait holds
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)


def test_a_command_that_looks_whether_an_agent_runs_keeps_none_from_starting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        release = threading.Timer(0.02, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with exclusive(path):
            release.join()
