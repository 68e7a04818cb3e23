"""Since when a study has been complete: its budget begins there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.edge.cases import HandClock
from tests.edge.inbox import QUIET_S, names, watch
from tests.edge.killable import put


def test_what_lies_there_at_the_first_look_begins_with_it(tmp_path: Path) -> None:
    """However long it has lain there: nobody was there to read it."""
    inbox, clock = watch(tmp_path / "inbox", wall=lambda: time.time() + 3600.0)
    put(tmp_path / "inbox", "a")
    assert [arrival.since_s for arrival in inbox.complete()] == [clock.now_s]


@pytest.mark.parametrize(
    ("age_s", "waited_s"), [(2.0, 2.0), (0.0, 0.0), (60.0, 6.0), (-3600.0, 0.0)]
)
def test_what_arrives_between_two_looks_begins_when_its_newest_file_says(
    tmp_path: Path, age_s: float, waited_s: float
) -> None:
    """But after the one look and before the other, whatever the wall clock says."""
    wall = HandClock()
    inbox, clock = watch(tmp_path / "inbox", wall)
    assert names(inbox) == []
    clock.sleep(6.0)
    folder = put(tmp_path / "inbox", "a")
    os.utime(folder / "0.dcm", (1.0, 1.0))  # a copy that brought its dates along
    newest = max(path.stat().st_ctime for path in (folder, *folder.iterdir()))
    wall.now_s = newest + age_s
    (arrival,) = inbox.complete()
    assert clock.now_s - arrival.since_s == pytest.approx(waited_s, abs=1e-3)


def test_a_study_that_is_renamed_into_place_begins_with_that(tmp_path: Path) -> None:
    """Its files are older, and so is what they were called before."""
    wall = HandClock()
    inbox, clock = watch(tmp_path / "inbox", wall)
    part = put(tmp_path / "inbox", "a.part")
    assert names(inbox) == []
    clock.sleep(6.0)
    while part.stat().st_ctime_ns <= (part / ".done").stat().st_ctime_ns:
        part.touch()
    folder = part.rename(tmp_path / "inbox" / "a")
    wall.now_s = folder.stat().st_ctime + 1.5
    (arrival,) = inbox.complete()
    assert clock.now_s - arrival.since_s == pytest.approx(1.5, abs=1e-3)


def test_a_study_without_a_mark_begins_when_it_had_been_quiet(tmp_path: Path) -> None:
    """Though the look that finds it so comes later; and it does not begin anew at the next."""
    inbox, clock = watch(tmp_path / "inbox")
    assert names(inbox) == []
    put(tmp_path / "inbox", "a", done=False)
    assert names(inbox) == []
    began_s = clock.now_s + QUIET_S
    clock.sleep(QUIET_S + 9.0)
    for _ in range(2):
        assert [arrival.since_s for arrival in inbox.complete()] == [began_s]
        clock.sleep(4.0)


def test_no_study_is_charged_for_the_time_in_which_its_quiet_is_waited_for(tmp_path: Path) -> None:
    """Whenever its last file came while another was read, it is quiet from the first look on."""
    wall = HandClock()
    inbox, clock = watch(tmp_path / "inbox", wall)
    assert names(inbox) == []
    clock.sleep(6.0)
    folder = put(tmp_path / "inbox", "a", done=False)
    wall.now_s = max(path.stat().st_ctime for path in (folder, *folder.iterdir())) + 5.5
    assert names(inbox) == []
    clock.sleep(QUIET_S)
    assert [arrival.since_s for arrival in inbox.complete()] == [clock.now_s]


def test_a_copy_that_brings_everything_along_is_another_study(tmp_path: Path) -> None:
    """Taken and sent again before the next look, it is quiet and complete anew."""
    inbox, clock = watch(tmp_path / "inbox")
    folder = put(tmp_path / "inbox", "a", done=False)
    assert names(inbox) == []
    clock.sleep(QUIET_S)
    (first,) = inbox.complete()
    taken = folder.rename(tmp_path / "taken")
    latest = max(path.stat().st_ctime_ns for path in (taken, *taken.iterdir()))
    clock.sleep(1.0)
    shutil.copytree(taken, folder)
    while folder.stat().st_ctime_ns <= latest:
        shutil.copystat(taken, folder)
    assert names(inbox) == []
    clock.sleep(QUIET_S)
    (second,) = inbox.complete()
    assert second.fingerprint == first.fingerprint
    assert second.since_s == clock.now_s
