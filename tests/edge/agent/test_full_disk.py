"""A disk or a database that is full for a moment, and files with dates of other days."""

import errno
import os
import sqlite3
import threading
import time
from enum import Enum
from pathlib import Path
from random import Random

import numpy as np
import pytest
from pydicom import dcmread

from edge.database import StepHook
from edge.run import run_agent
from edge.store.pending import PendingStep
from edge.store.steps import Step
from evaluation.faults.agent import at_random, reader, stand_in_cloud
from evaluation.faults.oracle import Sent, Wrong, busy, check
from evaluation.world import settings_in
from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume

PATIENCE_S = 300.0


def put_studies(root: Path) -> dict[str, Sent]:
    """Three series and one without HU in the inbox."""
    sent = {}
    for number in range(4):
        hu = np.random.default_rng(number).integers(-1000, 400, (6, 48, 48)).astype(np.int16)
        header = StudyHeader(study_uid=f"1.2.826.0.1.{number + 1}")
        folder = root / "inbox" / str(number)
        files = write_series(
            Volume(hu, Geometry((5.0, 2.0, 2.0))), folder, header=header, seed=number
        )
        uids = {str(dcmread(file).SOPInstanceUID) for file in files}
        for file in files:
            image = dcmread(file)
            uid = str(image.SOPInstanceUID)
            if number == 3:
                del image.RescaleSlope
            image.save_as(file)
            file.rename(file.with_name(f"{uid}.dcm"))
        (folder / ".done").touch()
        sent[header.study_uid] = Sent(uids, str(number), usable=number != 3)
    return sent


def work_off(
    root: Path,
    sent: dict[str, Sent],
    on_step: StepHook | None = None,
    idle: threading.Event | None = None,
) -> Wrong:
    """Check all studies after the agent has worked until it is ``idle``."""
    stop, died, settings = threading.Event(), list[BaseException](), settings_in(root)
    cloud = stand_in_cloud(at_random(1))

    def live() -> None:
        try:
            read = reader(cloud, settings, varied=True)
            run_agent(settings, read=read, second=cloud, on_step=on_step, stop=stop)
        except BaseException as error:
            died.append(error)

    agent = threading.Thread(target=live)
    agent.start()
    until = time.monotonic() + PATIENCE_S
    while (not (root / "state").exists() or busy(root)) and agent.is_alive():
        assert time.monotonic() < until, "the agent did not come to an end"
        time.sleep(0.005)
    if idle is not None:
        idle.set()
    stop.set()
    agent.join()
    assert died == []
    return check(root, sent, {}, varied=True)


def assert_sound(wrong: Wrong) -> None:
    assert not any([*wrong.lost.values(), *wrong.doubled.values(), wrong.left]), wrong


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_is_full_at_any_file_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """One in ten of all synchronisations finds no space, until the agent is idle."""
    sent, idle = put_studies(tmp_path), threading.Event()
    chance, real, full = Random(seed), os.fsync, [0]

    def fsync(descriptor: int) -> None:
        if chance.random() < 0.1 and not idle.is_set():
            full[0] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    wrong = work_off(tmp_path, sent, idle=idle)
    assert full[0] > 0
    assert_sound(wrong)


@pytest.mark.parametrize("step", [*(s for s in Step if s is not Step.JOINING), *PendingStep])
def test_a_database_that_is_full_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, step: Step | PendingStep
) -> None:
    """Before each durable step, twice."""
    sent, full = put_studies(tmp_path), [2]

    def on_step(at: Enum, durable: bool) -> None:
        if at is step and not durable and full[0]:
            full[0] -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    assert_sound(work_off(tmp_path, sent, on_step))


def test_files_dated_tomorrow_or_yesterday_are_read(tmp_path: Path) -> None:
    sent = put_studies(tmp_path)
    for days, name in ((1, "0"), (-1, "1")):
        for path in (tmp_path / "inbox" / name).iterdir():
            stamp = time.time() + 86_400 * days
            os.utime(path, (stamp, stamp))
    (tmp_path / "inbox" / "0" / ".done").unlink()
    assert_sound(work_off(tmp_path, sent))
