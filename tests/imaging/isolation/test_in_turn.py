"""A study that was read ahead while it arrived is read as any other; and what may go wrong."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from imaging.dicom.writer import write_series
from imaging.errors import IncompleteSeries
from imaging.isolation.in_turn import ReadersInTurn
from imaging.isolation.reader import ReaderFailed, ReadLimits
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.selection import Preference, SeriesSummary
from tests.evaluation.plain_chest import chest
from tests.imaging.isolation.test_reader import _children, _readers
from tests.imaging.small_ct import SmallCt

PATIENCE_S = 60.0
LIMITS = ReadLimits(memory_mb=3500, seconds=PATIENCE_S)


@pytest.fixture
def readers() -> Iterator[ReadersInTurn]:
    with ReadersInTurn(LIMITS) as readers:
        yield readers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_series(chest(), folder)
    return folder


def child_that_read(least_bytes: int) -> int:
    """Wait until the child that reads ahead has read so much, and return it."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for child in (child for reader in _readers() for child in _children(reader)):
            told = Path(f"/proc/{child}/io").read_text().splitlines()
            if int(told[0].removeprefix("rchar: ")) >= least_bytes:
                return child
        time.sleep(0.005)
    raise AssertionError("nothing was read ahead")


def test_a_study_that_is_moved_when_it_is_complete_is_read_as_any_other(
    readers: ReadersInTurn, whole: Path, tmp_path: Path
) -> None:
    arriving, (last, *files) = tmp_path / "inbox", sorted(whole.iterdir())
    arriving.mkdir()
    readers.begin(arriving, 0.0)
    for file in files:
        shutil.copyfile(file, arriving / file.name)
    child = child_that_read(sum(file.stat().st_size for file in files))
    shutil.copyfile(last, arriving / last.name)
    readers.begin(arriving, 0.0)  # it has begun
    assert child_that_read(0) == child
    work = arriving.rename(tmp_path / "work")
    study, here = readers.read(work), read_study(work)
    box, wanted = readers.preprocess(study.volume, work), preprocess(here.volume)
    np.testing.assert_array_equal(box.voxels, wanted.voxels)
    assert box.measures == wanted.measures
    assert study.headers is not None
    assert here.headers is not None
    assert study.headers() == here.headers()
    assert (study.header, study.images) == (here.header, here.images)
    assert not readers.has_begun(work)


def test_the_next_study_may_begin_while_the_report_of_one_needs_its_headers(
    readers: ReadersInTurn, whole: Path, tmp_path: Path
) -> None:
    SmallCt().write(tmp_path / "next")
    study = readers.read(whole)
    box = readers.preprocess(study.volume, whole)
    readers.begin(tmp_path / "next", 0.0)
    assert box.measures == preprocess(read_study(whole).volume).measures
    assert study.headers is not None
    assert study.headers()
    assert readers.read(tmp_path / "next").volume.series_uid == "1.2.826.0.1.1"


def test_a_process_that_died_while_it_read_ahead_costs_nothing_but_time(
    readers: ReadersInTurn, tmp_path: Path
) -> None:
    SmallCt().write(tmp_path)
    readers.begin(tmp_path, 0.0)
    os.kill(child_that_read(0), signal.SIGSEGV)
    until = time.monotonic() + PATIENCE_S
    while readers.has_begun(tmp_path) and time.monotonic() < until:
        time.sleep(0.005)
    readers.begin(tmp_path, 0.0)  # it would end the process again
    assert not readers.has_begun(tmp_path)
    assert readers.read(tmp_path).volume.series_uid == "1.2.826.0.1.1"


def test_readers_that_the_system_kills_are_started_again(
    readers: ReadersInTurn, tmp_path: Path
) -> None:
    for name in "ab":
        SmallCt().write(tmp_path / name)
    for _ in range(3):
        readers.begin(tmp_path / "a", 0.0)
        for reader in _readers():
            os.kill(reader, signal.SIGKILL)
        for name in "ba":
            with suppress(MemoryError):  # it was not seen to be dead yet
                readers.read(tmp_path / name)
    assert readers.read(tmp_path / "a").volume.series_uid == "1.2.826.0.1.1"


def test_another_study_comes_first_and_then_the_one_that_was_begun(
    readers: ReadersInTurn, tmp_path: Path
) -> None:
    for name in ("1", "2"):
        SmallCt(series=name).write(tmp_path / name)
    readers.begin(tmp_path / "1", 0.0)
    for name in ("2", "1"):
        assert readers.read(tmp_path / name).volume.series_uid[-1] == name


def test_what_is_wrong_is_told_as_for_any_other_study(
    readers: ReadersInTurn, tmp_path: Path
) -> None:
    files = SmallCt().write(tmp_path)
    readers.begin(tmp_path, 0.0)
    files[5].unlink()
    with pytest.raises(IncompleteSeries) as refused:
        readers.read(tmp_path)
    assert refused.value.file == files[6]


def test_the_caller_chooses_among_the_series_of_a_study_that_was_begun(tmp_path: Path) -> None:
    for number in ("1", "2"):
        SmallCt(series=number).write(tmp_path / number)

    def second_first(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        return tuple(Preference("", -int(one.uid[-1])) for one in series)

    with ReadersInTurn(LIMITS, selects=True) as readers:
        readers.begin(tmp_path, 0.0)
        assert readers.read(tmp_path, "", second_first).volume.series_uid[-1] == "2"


def test_measures_that_were_not_asked_for_in_time_are_no_measures(
    readers: ReadersInTurn, whole: Path, tmp_path: Path
) -> None:
    """A report without them would give a guarantee that it must not give."""
    SmallCt().write(tmp_path)
    study = readers.read(whole)
    box = readers.preprocess(study.volume, whole)
    readers.read(tmp_path)
    with pytest.raises(ReaderFailed, match="not asked for in time"):
        _ = box.measures
