"""The agent on a machine that fails: a full disk, a locked database, files that cannot move."""

import errno
import threading
from pathlib import Path

import pytest

from edge.agent.study import MAX_ATTEMPTS
from edge.atomic_files import move as real_move
from edge.job import Job
from edge.pipeline import StudyResult
from edge.run import run_agent
from edge.store.pending import PendingStep
from edge.store.record import Step
from evaluation.world import settings_in
from tests.edge.builders import HandClock, open_store, put
from tests.edge.running_agent import (
    Killed,
    assert_each_once,
    database,
    held_at,
    once_at,
    quick_read,
    reading,
    statuses,
    whereabouts,
    work_off,
)


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_pauses_and_loses_nothing(tmp_path: Path, full: int) -> None:
    put(tmp_path / "inbox", "a")
    tries: list[str] = []

    def fail(job: Job) -> None:
        tries.append(job.study_key)
        if len(tries) <= MAX_ATTEMPTS + 2:
            raise OSError(full, "no room")

    work_off(tmp_path, reading(fail))
    assert_each_once(tmp_path, {"a"}, set())
    assert len(set(tries)) == 1
    with open_store(database(tmp_path)) as store:
        assert [record.attempts for record in store.at(Step.DONE)] == [1]


def test_a_study_that_the_disk_has_no_room_for_keeps_no_other_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied from another filesystem; smaller ones that come after it have room."""
    for name in ("a", "b", "c"):
        put(tmp_path / "inbox", name)
    failures: list[Path] = []

    def move(source: Path, target: Path) -> None:
        others = [tmp_path / "outbox" / name / "report.json" for name in ("b", "c")]
        if source.name == "a" and not all(report.exists() for report in others):
            failures.append(source)
            assert len(failures) < 20, "the others wait for it"
            raise OSError(errno.ENOSPC, "no room")
        real_move(source, target)

    monkeypatch.setattr("edge.agent.claim.move", move)
    work_off(tmp_path)
    assert failures != []
    assert_each_once(tmp_path, {"a", "b", "c"}, set())


def test_a_disk_that_is_full_at_a_claim_delays_it_and_the_budget_keeps_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "inbox", "a")
    clock, jobs, failures = HandClock(), list[Job](), list[Path]()

    def move(source: Path, target: Path) -> None:
        if len(failures) < 3:
            failures.append(source)
            clock.sleep(4.0)
            raise OSError(errno.ENOSPC, "no room")
        real_move(source, target)

    start_s = clock()
    monkeypatch.setattr("edge.agent.claim.move", move)
    work_off(tmp_path, reading(jobs.append), clock=clock)
    assert_each_once(tmp_path, {"a"}, set())
    assert [job.since_s for job in jobs] == [start_s]
    assert clock() >= start_s + 12.0


@pytest.mark.parametrize(
    "step",
    [Step.CLAIMING, Step.CLAIMED, Step.READING, PendingStep.SAVED, Step.REPORTED, Step.DONE],
    ids=lambda step: step.value,
)
def test_a_locked_database_pauses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step | PendingStep
) -> None:
    """A backup, say: the report is out once, and its pending read counts."""
    monkeypatch.setattr("edge.database.BUSY_S", 0.01)
    put(tmp_path / "inbox", "a", "pending")
    path = database(tmp_path)
    work_off(tmp_path, on_step=held_at(path, step, looks=3))
    assert whereabouts(tmp_path) == {"a": ["done"]}
    assert statuses(tmp_path) == {"a": "provisional"}
    with open_store(path) as store:
        assert [record.attempts for record in store.at(Step.DONE)] == [1]
        assert [read.version for read in store.pending.at(PendingStep.PENDING)] == [1]


@pytest.mark.parametrize(
    ("number", "unaided"), [(errno.EACCES, {"a", "b"}), (errno.ENOTEMPTY, {"b"})]
)
def test_a_study_whose_files_cannot_be_moved_does_not_stop_the_others(
    number: int, unaided: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not be moved goes on once it may; the rest at the next start at the latest."""
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b")

    def move(source: Path, target: Path) -> None:
        if (source / "a").exists() and "b" not in statuses(tmp_path):
            raise OSError(number, "not yours")
        real_move(source, target)

    def watch(*_: object) -> None:
        if unaided <= statuses(tmp_path).keys():
            stop.set()

    stop = threading.Event()
    monkeypatch.setattr("edge.agent.study.move", move)
    run_agent(settings_in(tmp_path), read=quick_read, stop=stop, on_step=watch)
    assert unaided <= statuses(tmp_path).keys()
    put(tmp_path / "inbox", "c")
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a", "b", "c"}, set())


@pytest.mark.parametrize(
    "fault", [OSError(errno.EIO, "bad sector"), MemoryError()], ids=["EIO", "no memory"]
)
def test_after_a_fault_of_the_machine_the_study_waits_and_the_others_are_read(
    fault: Exception, tmp_path: Path
) -> None:
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b")
    tried: list[str] = []

    def fail(job: Job) -> None:
        tried.append(job.source.name)
        if job.source.name == "a" and tried.count("a") <= MAX_ATTEMPTS + 1:
            raise fault

    work_off(tmp_path, reading(fail))
    assert tried == ["a", "b", *["a"] * (MAX_ATTEMPTS + 1)]
    assert_each_once(tmp_path, {"a", "b"}, set())


def test_an_unwritable_outbox_counts_no_attempt_against_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "inbox", "a")

    def unwritable(*_: object) -> StudyResult:
        raise PermissionError(errno.EACCES, "not yours")

    with monkeypatch.context() as patch:
        patch.setattr("edge.agent.study.write_report", unwritable)
        for _ in range(MAX_ATTEMPTS + 1):
            stop = threading.Event()
            hook = once_at(Step.READING, True, stop.set)
            run_agent(settings_in(tmp_path), read=unwritable, stop=stop, on_step=hook)
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a"}, set())
    with open_store(database(tmp_path)) as store:
        assert [record.attempts for record in store.at(Step.DONE)] == [1]


@pytest.mark.parametrize("damaged", ["", '{"rejec', "[]", "{}", '{"rejection": {"odd": 1}}'])
def test_a_damaged_report_counts_as_none(tmp_path: Path, damaged: str) -> None:
    put(tmp_path / "inbox", "a")

    def damage(job: Job) -> None:
        (job.out / "report.json").write_text(damaged)
        raise Killed

    with pytest.raises(Killed):
        work_off(tmp_path, reading(damage))
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a"}, set())


def test_the_folder_in_quarantine_outlasts_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry is on the disk before the reason lies in it."""
    synced: list[tuple[Path, list[Path]]] = []
    monkeypatch.setattr(
        "edge.agent.study.sync_folder",
        lambda folder: synced.append((folder, list(folder.glob("*/reason.json")))),
    )
    put(tmp_path / "inbox", "a", "bad")
    work_off(tmp_path)
    assert synced == [(tmp_path / "state" / "quarantine", [])]
