import errno
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from edge.database import StepHook
from edge.store.pending import PendingStep
from edge.store.steps import Step
from evaluation.recovery.agent import RandomCloud, put_study, work
from evaluation.recovery.check import Found, busy, check

PATIENCE_S = 300.0
STUDIES: dict[str, Sequence[float] | None] = {
    "a": (0.95, 0.6, 0.4, 0.2),
    "b": (0.7, 0.5, 0.3),
    "c": None,
    "d": (),
    "e": (0.8, 0.45),
}


def work_off(root: Path, seed: int, on_step: StepHook | None = None) -> Found:
    """Check all studies after the agent has worked until it is idle."""
    for name, scores in STUDIES.items():
        if not (root / "inbox" / name).exists():
            put_study(root / "inbox", name, scores)
    stop = threading.Event()
    died: list[BaseException] = []

    def live() -> None:
        try:
            work(root, RandomCloud(Random(seed)), on_step=on_step, stop=stop)
        except BaseException as error:
            died.append(error)

    agent = threading.Thread(target=live)
    agent.start()
    until = time.monotonic() + PATIENCE_S
    while (not (root / "state").exists() or busy(root)) and agent.is_alive():
        assert time.monotonic() < until, "the agent did not come to an end"
        time.sleep(0.005)
    stop.set()
    agent.join()
    assert died == []
    return check(root, STUDIES)


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_is_full_at_any_file_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """One in ten of all synchronisations finds no space."""
    chance, real, full = Random(seed), os.fsync, [0]

    def fsync(descriptor: int) -> None:
        if chance.random() < 0.1:
            full[0] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    found = work_off(tmp_path, seed)
    assert full[0] > 0
    assert found.sound, found


@pytest.mark.parametrize("step", [*(s for s in Step if s is not Step.JOINING), *PendingStep])
def test_a_database_that_is_full_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, step: Step | PendingStep
) -> None:
    """Before each durable step, twice."""
    full = [2]

    def on_step(at: Step | PendingStep, durable: bool) -> None:
        if at is step and not durable and full[0]:
            full[0] -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    found = work_off(tmp_path, 1, on_step)
    assert found.sound, found


def test_files_dated_tomorrow_or_yesterday_are_read(tmp_path: Path) -> None:
    for days, name in ((1, "a"), (-1, "b")):
        put_study(tmp_path / "inbox", name, STUDIES[name])
        for path in (tmp_path / "inbox" / name).iterdir():
            stamp = time.time() + 86_400 * days
            os.utime(path, (stamp, stamp))
    (tmp_path / "inbox" / "a" / ".done").unlink()
    assert work_off(tmp_path, 2).sound
