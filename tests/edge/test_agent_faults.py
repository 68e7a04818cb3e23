"""Disks, databases and folders that fail the daemon: it pauses or goes on, and blames no study."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from edge.agent import run_agent
from edge.carry import MAX_ATTEMPTS
from edge.debt import OwedStep
from edge.durable import move as real_move
from edge.outcome import Job
from edge.pipeline import Reading
from edge.spool import Spool, Step
from evaluation.kill_agent import settings_in
from tests.edge.daemon import (
    Killed,
    assert_each_once,
    statuses,
    whereabouts,
    work_off,
)
from tests.edge.full_database import full_at, full_error, held_at
from tests.edge.killable import put, quick_line


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


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.READING, Step.REPORTED, Step.DONE])
def test_a_database_that_cannot_grow_pauses_too(tmp_path: Path, step: Step) -> None:
    """Whichever step it is that finds the disk full, it is made later, and the report stands."""
    put(tmp_path / "inbox", "a")
    reads: list[str] = []

    def line(job: Job) -> Reading:
        reads.append(job.study_key)
        return quick_line(job)

    work_off(tmp_path, line, full_at(step, times=3))
    assert_each_once(tmp_path, {"a"}, set())
    assert len(reads) == 1


@pytest.mark.parametrize(
    "step",
    [Step.CLAIMING, Step.CLAIMED, Step.READING, OwedStep.KEPT, Step.REPORTED, Step.DONE],
    ids=lambda step: step.value,
)
def test_a_database_that_another_holds_pauses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step | OwedStep
) -> None:
    """A backup, say: the study is not refused, its report is out once, and what it owes counts."""
    monkeypatch.setattr("edge.database.BUSY_S", 0.01)
    put(tmp_path / "inbox", "a", "owe")
    path = tmp_path / "state" / "spool.sqlite3"
    work_off(tmp_path, on_step=held_at(path, step, looks=3))
    assert whereabouts(tmp_path) == {"a": ["done"]}
    assert statuses(tmp_path) == {"a": "provisional"}
    with Spool(path) as spool:
        assert [record.attempts for record in spool.at(Step.DONE)] == [1]
        assert [debt.version for debt in spool.owed.at(OwedStep.OWED)] == [1]


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
            raise full_error()

    def line(job: Job) -> Reading:
        if full():
            raise OSError(errno.ENOSPC, "no room")
        return quick_line(job)

    work_off(tmp_path, line, on_step)
    assert_each_once(tmp_path, {"a"}, set())
    with Spool(tmp_path / "state" / "spool.sqlite3") as spool:
        assert [record.attempts for record in spool.at(Step.DONE)] == [1]


def test_a_pause_before_anything_is_read_takes_back_no_attempt_of_an_earlier_life(
    tmp_path: Path,
) -> None:
    """What died in the middle of its reading is blamed though every start meets a full disk."""
    put(tmp_path / "inbox", "a")

    def line(_job: Job) -> Reading:
        raise Killed

    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(Killed):
            work_off(tmp_path, line, full_at(Step.READING, times=1))
    work_off(tmp_path, line, full_at(Step.READING, times=1))
    assert_each_once(tmp_path, set(), {"a"})


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


def test_an_outbox_that_cannot_be_written_is_not_held_against_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is met: once it can be written, the study is read."""
    put(tmp_path / "inbox", "a")

    def unwritable(*_: object) -> Reading:
        raise PermissionError(errno.EACCES, "not yours")

    def on_step(step: Step | OwedStep, durable: bool) -> None:
        if step is Step.READING and durable:
            stop.set()

    with monkeypatch.context() as patch:
        patch.setattr("edge.carry.write_report", unwritable)
        for _ in range(MAX_ATTEMPTS + 1):
            stop = threading.Event()
            run_agent(settings_in(tmp_path), line=unwritable, stop=stop, on_step=on_step)
    work_off(tmp_path)
    assert_each_once(tmp_path, {"a"}, set())
    with Spool(tmp_path / "state" / "spool.sqlite3") as spool:
        assert [record.attempts for record in spool.at(Step.DONE)] == [1]
