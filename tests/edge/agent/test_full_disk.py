"""A disk or a database that is full for a moment, and files with dates of other days."""

import errno
import os
import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from pydicom import dcmread

from edge.database import StepHook
from edge.store.pending import PendingStep
from edge.store.record import Step
from evaluation.faults.agent import at_random, reader, stand_in_cloud
from evaluation.faults.oracle import Sent, Wrong, busy, check
from evaluation.world import settings_in
from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume
from tests.edge.running_agent import full_at, running, wait_until


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
    settings, cloud = settings_in(root), stand_in_cloud(at_random(1))
    read = reader(cloud, settings, varied=True)
    with running(settings, read=read, second=cloud, on_step=on_step):
        wait_until(lambda: (root / "state").exists() and not busy(root))
        if idle is not None:
            idle.set()
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
    sent = put_studies(tmp_path)
    assert_sound(work_off(tmp_path, sent, full_at(step, times=2)))


def test_files_dated_tomorrow_or_yesterday_are_read(tmp_path: Path) -> None:
    sent = put_studies(tmp_path)
    for days, name in ((1, "0"), (-1, "1")):
        for path in (tmp_path / "inbox" / name).iterdir():
            stamp = time.time() + 86_400 * days
            os.utime(path, (stamp, stamp))
    (tmp_path / "inbox" / "0" / ".done").unlink()
    assert_sound(work_off(tmp_path, sent))
