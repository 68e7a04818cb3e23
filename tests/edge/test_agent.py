from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from edge.agent import _draining, run_agent
from edge.carry import MAX_ATTEMPTS, Places, Read, carry
from edge.debt import OwedStep
from edge.durable import move as real_move
from edge.ingest import report_names
from edge.outcome import Job
from edge.pipeline import Reading
from edge.spool import AlreadyRunning, Spool, Step, StepHook
from tests.edge.killable import Crash, put, quick_line, serve, settings_in

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.edge.killable"])
PATIENCE_S = 300.0


class Killed(BaseException):
    """Stands for a crash inside this process: nothing may catch it."""


def work_off(root: Path, line: Read = quick_line, on_step: StepHook | None = None) -> None:
    """Run the agent in this process until every study in the inbox has come to its end."""
    stop = threading.Event()
    expected = sum(not name.startswith(".") for name in os.listdir(root / "inbox"))
    expected += unfinished(root)

    def watch(step: Step | OwedStep, durable: bool) -> None:
        nonlocal expected
        if on_step is not None:
            on_step(step, durable)
        if durable and step in (Step.DONE, Step.QUARANTINED):
            expected -= 1
        if expected <= 0:
            stop.set()

    run_agent(settings_in(root), line=line, stop=stop, on_step=watch)


def unfinished(root: Path) -> int:
    """Studies that have not come to their end, and debts; read without disturbing the agent."""
    path = root / "state" / "spool.sqlite3"
    if not path.exists():
        return 0
    query = "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?)) +"
    query += " (SELECT count(*) FROM owed)"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        ends = (Step.DONE.value, Step.QUARANTINED.value)
        return int(database.execute(query, ends).fetchone()[0])


def idle(root: Path) -> bool:
    """Whether there is nothing left to do."""
    left = [name for name in os.listdir(root / "inbox") if not name.startswith(".")]
    try:
        return not left and unfinished(root) == 0
    except sqlite3.OperationalError:  # the agent has not made the tables yet
        return False


def start(root: Path, crash: Crash = None) -> ForkServerProcess:
    """The agent as a process of its own."""
    process = PROCESSES.Process(target=serve, args=(root, crash))
    process.start()
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail the test if it never does."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def drain(root: Path) -> None:
    """Start the agent, let it do all there is, and end it by SIGTERM."""
    watching = root / "watching"
    watching.unlink(missing_ok=True)
    process = start(root)
    wait_until(lambda: process.exitcode is not None or (watching.exists() and idle(root)))
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def whereabouts(root: Path) -> dict[str, list[str]]:
    """By study name, each place where the whole of it came to rest."""
    places: dict[str, list[str]] = {}
    for end, pattern in (("done", "done/*/*"), ("quarantine", "quarantine/*/study/*")):
        for folder in (root / "state").glob(pattern):
            assert len(list(folder.glob("*.dcm"))) == 2
            places.setdefault(folder.name, []).append(end)
    return places


def statuses(root: Path) -> dict[str, str]:
    """By report folder, the status in its ``report.json``."""
    reports = (root / "outbox").glob("*/report.json")
    return {path.parent.name: json.loads(path.read_text())["status"] for path in reports}


def leftovers(root: Path) -> list[str]:
    """What should not be there any more."""
    return [*os.listdir(root / "state" / "work"), *(str(p) for p in root.rglob("*.part"))]


def assert_each_once(root: Path, good: set[str], bad: set[str]) -> None:
    """Every study ended once, where it belongs, with one report."""
    ends = {**{name: ["done"] for name in good}, **{name: ["quarantine"] for name in bad}}
    assert whereabouts(root) == ends
    outcomes = {**dict.fromkeys(good, "final"), **dict.fromkeys(bad, "rejected")}
    assert statuses(root) == outcomes
    assert leftovers(root) == []


def assert_amended_once(out: Path) -> None:
    """The last version is final with both verdicts, and the versions before it lie beside it."""
    last = json.loads((out / "report.json").read_text())
    version = last["version"]
    older = [json.loads((out / f"report.v{n}.json").read_text()) for n in range(1, version)]
    assert [report["version"] for report in older] == list(range(1, version))
    assert {report["study_key"] for report in older} == {last["study_key"]}
    assert len(list(out.glob("report.v*.json"))) == version - 1
    assert [change["number"] for change in last["changes"]] == [2, 3]
    assert [finding["number"] for finding in last["findings"]] == [2, 3, 1]
    assert f"version {version}<br>" in (out / "report.html").read_text()


def test_every_study_gets_its_report_and_bad_ones_are_kept(tmp_path: Path) -> None:
    """Good studies end in done, bad ones in quarantine, each with one report in the outbox."""
    for name, text in (("a b", "x"), ("Ünïcode 漢", "x"), ("c", "bad"), ("d", "boom")):
        put(tmp_path / "inbox", name, text)
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a b", "Ünïcode 漢"}, {"c", "d"})


def test_reason_file_names_kind_file_and_reason(tmp_path: Path) -> None:
    """What was wrong, with which file of which study, and where the report is."""
    put(tmp_path / "inbox", "c", "bad")
    work_off(tmp_path)
    (path,) = (tmp_path / "state" / "quarantine").glob("*/reason.json")
    reason = json.loads(path.read_text())
    assert (reason["kind"], reason["file"]) == ("NotCt", "0.dcm")
    assert (reason["reason"], reason["study"]) == ("this is no CT", "c")
    assert Path(reason["report"]).is_file()
    assert reason["study_key"] == path.parent.name


def test_an_unexpected_fault_is_kept_with_its_traceback_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    """The reason file says where in the program it was; the page for readers does not."""
    put(tmp_path / "inbox", "a", "boom")
    put(tmp_path / "inbox", "b")
    work_off(tmp_path)
    (path,) = (tmp_path / "state" / "quarantine").glob("*/reason.json")
    reason = json.loads(path.read_text())
    assert reason["kind"] == "InternalError"
    assert "Traceback" in reason["reason"]
    assert "a fault in the line" in reason["reason"]
    assert "Traceback" not in (tmp_path / "outbox" / "a" / "report.html").read_text()
    assert statuses(tmp_path) == {"a": "rejected", "b": "final"}


def test_studies_of_one_name_get_a_report_each(tmp_path: Path) -> None:
    """The second is numbered; an outbox folder of somebody else's is not touched."""
    (tmp_path / "outbox" / "a").mkdir(parents=True)
    for _ in range(2):
        put(tmp_path / "inbox", "a")
        work_off(tmp_path)
    assert statuses(tmp_path) == {"a-2": "final", "a-3": "final"}
    assert list((tmp_path / "outbox" / "a").iterdir()) == []


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_pauses_and_loses_nothing(tmp_path: Path, full: int) -> None:
    """The study is read again when there is room, and no attempt is held against it."""
    put(tmp_path / "inbox", "a")
    tries: list[str] = []

    def line(job: Job) -> Reading:
        tries.append(job.study_key)
        if len(tries) <= MAX_ATTEMPTS + 2:
            raise OSError(full, "no room")
        return quick_line(job)

    work_off(tmp_path, line)
    assert_each_once(tmp_path, {"a"}, set())
    assert len(set(tries)) == 1
    with Spool(tmp_path / "state" / "spool.sqlite3") as spool:
        assert [record.attempts for record in spool.at(Step.DONE)] == [1]


@pytest.mark.parametrize("full_at", [Step.CLAIMED, Step.READING, Step.REPORTED, Step.DONE])
def test_a_database_that_cannot_grow_pauses_too(tmp_path: Path, full_at: Step) -> None:
    """Whichever step it is that finds the disk full, it is made later, and the report stands."""
    put(tmp_path / "inbox", "a")
    full = [3]
    reads: list[str] = []

    def on_step(step: Step | OwedStep, durable: bool) -> None:
        if step is full_at and not durable and full[0]:
            full[0] -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    def line(job: Job) -> Reading:
        reads.append(job.study_key)
        return quick_line(job)

    work_off(tmp_path, line, on_step)
    assert_each_once(tmp_path, {"a"}, set())
    assert len(reads) == 1


def test_a_disk_that_is_full_for_all_and_for_long_blames_no_study(tmp_path: Path) -> None:
    """Neither report nor database finds room, more often than a study may be tried."""
    put(tmp_path / "inbox", "a")
    left = [4 * MAX_ATTEMPTS]

    def full() -> bool:
        left[0] -= 1
        return left[0] > 0

    def on_step(step: Step | OwedStep, durable: bool) -> None:
        if step is Step.CLAIMED and not durable and left[0] < 4 * MAX_ATTEMPTS and left[0] % 2:
            left[0] -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    def line(job: Job) -> Reading:
        if full():
            raise OSError(errno.ENOSPC, "no room")
        return quick_line(job)

    work_off(tmp_path, line, on_step)
    assert_each_once(tmp_path, {"a"}, set())
    with Spool(tmp_path / "state" / "spool.sqlite3") as spool:
        assert [record.attempts for record in spool.at(Step.DONE)] == [1]


def test_a_study_that_kills_the_process_is_blamed_in_the_end(tmp_path: Path) -> None:
    """After three deaths it is quarantined unread, and the study after it gets its report."""
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b")
    deaths: list[str] = []

    def line(job: Job) -> Reading:
        if job.source.name == "a":
            deaths.append(job.study_key)
            raise Killed
        return quick_line(job)

    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(Killed):
            work_off(tmp_path, line)
    work_off(tmp_path, line)
    assert len(deaths) == MAX_ATTEMPTS
    assert_each_once(tmp_path, {"b"}, {"a"})
    (path,) = (tmp_path / "state" / "quarantine").glob("*/reason.json")
    assert json.loads(path.read_text())["kind"] == "RepeatedCrash"


def test_a_report_that_is_out_is_not_written_again(tmp_path: Path) -> None:
    """Killed between report and database, the next start believes the report."""
    places = Places.of(settings_in(tmp_path))
    places.make()
    with Spool(places.state / "s.db") as spool:
        record = spool.open_claim(("a",), "p", report_names("a"))
        assert record is not None
        put(places.work / record.id, "a", "bad")
        spool.advance(record.id, Step.CLAIMED)
        job = Job(places.work / record.id / "a", places.outbox / "a", record.id)
        spool.advance(record.id, Step.READING)
        quick_line(job)

        def never(_job: Job) -> Reading:
            raise AssertionError("read again")

        carry(spool.get(record.id), places, spool, never, 10.0)
        assert spool.get(record.id).step is Step.QUARANTINED
        assert spool.get(record.id).kind == "NotCt"


def test_a_study_whose_files_cannot_be_moved_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set aside with its report out, and finished at the next start."""
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b")

    def move(source: Path, target: Path) -> None:
        if (source / "a").exists():
            raise PermissionError(errno.EACCES, "not yours")
        real_move(source, target)

    def on_step(step: Step | OwedStep, _durable: bool) -> None:
        if step is Step.DONE:
            stop.set()

    stop = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("edge.carry.move", move)
        run_agent(settings_in(tmp_path), line=quick_line, stop=stop, on_step=on_step)
    assert whereabouts(tmp_path) == {"b": ["done"]}
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a", "b"}, set())


def test_two_agents_cannot_share_an_inbox(tmp_path: Path) -> None:
    """The second is refused as long as the first runs, whatever its state folder."""
    process = start(tmp_path)
    wait_until(lambda: (tmp_path / "state" / "spool.sqlite3").exists())
    other = settings_in(tmp_path).model_copy(update={"state_dir": tmp_path / "other"})
    try:
        with pytest.raises(AlreadyRunning, match="another agent"):
            run_agent(other, line=quick_line, stop=threading.Event())
    finally:
        process.kill()
        process.join(PATIENCE_S)


def test_sigterm_finishes_the_study_at_hand_and_no_other(tmp_path: Path) -> None:
    """The process ends with status 0, one report is out, the other study waits."""
    context = PROCESSES
    for name in "ab":
        put(tmp_path / "inbox", name)
    process = context.Process(target=serve, args=(tmp_path, None, slow_line))
    process.start()
    wait_until(lambda: (tmp_path / "outbox" / "begun").exists())
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert statuses(tmp_path) == {"a": "final"}
    drain(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"], "b": ["done"]}


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """It dies of the signal, the study is read at the next start."""
    put(tmp_path / "inbox", "a")
    process = PROCESSES.Process(target=serve, args=(tmp_path, None, endless_line))
    process.start()
    wait_until(lambda: (tmp_path / "outbox" / "begun").exists())
    process.terminate()
    wait_until(lambda: (tmp_path / "outbox" / "told").exists())
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGTERM
    drain(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"]}


def slow_line(job: Job) -> Reading:
    """Takes a while over each study, and leaves a sign that it has begun."""
    (job.out.parent / "begun").touch()
    time.sleep(0.5)
    return quick_line(job)


def endless_line(job: Job) -> Reading:
    """Never comes to an end; leaves a sign when it has begun and when it was told to stop."""
    (job.out.parent / "begun").touch()
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        time.sleep(0.001)
    (job.out.parent / "told").touch()
    time.sleep(PATIENCE_S)
    return quick_line(job)


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [*Step, *OwedStep], ids=lambda step: step.value)
def test_killed_at_any_durable_step_no_study_is_lost_or_doubled(
    tmp_path: Path, step: Step | OwedStep, durable: bool
) -> None:
    """SIGKILL just before or just after each step: the next start ends every study once.

    What is owed is amended once: every version is there, each verdict is one change.
    """
    for name, text in (("a", "x"), ("b ü", "bad"), ("c", "boom"), ("d", "owe")):
        put(tmp_path / "inbox", name, text)
    process = start(tmp_path, (step, durable))
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    drain(tmp_path)
    assert_each_once(tmp_path, {"a", "d"}, {"b ü", "c"})
    assert_amended_once(tmp_path / "outbox" / "d")


@pytest.mark.parametrize("seed", range(26))
def test_killed_at_random_moments_no_study_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    """SIGKILL at a moment of chance, with a study arriving meanwhile, and a clean start after."""
    chance = random.Random(seed)
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b ü", "bad")
    put(tmp_path / "inbox", "c", "owe")
    process = start(tmp_path)
    wait_until((tmp_path / "started").exists)
    time.sleep(chance.uniform(0.0, 0.1))
    put(tmp_path / "inbox", "late")
    time.sleep(chance.uniform(0.0, 0.1))
    process.kill()
    process.join(PATIENCE_S)
    drain(tmp_path)
    assert_each_once(tmp_path, {"a", "c", "late"}, {"b ü"})
    assert_amended_once(tmp_path / "outbox" / "c")


def test_a_signal_in_the_midst_of_a_wait_does_not_meet_the_events_lock() -> None:
    """The handler returns although the thread that it interrupts holds the event's lock."""
    stop = threading.Event()
    with _draining(stop):
        with stop._cond:  # type: ignore[attr-defined]  # the lock that a wait holds
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
