"""Studies are read in child processes: what a study does to its reader ends with the child."""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from typing_extensions import TypeAliasType

from imaging.dicom.source import read_source_headers
from imaging.dicom.writer import write_series
from imaging.errors import (
    IncompleteSeries,
    NoLung,
    NotCt,
    StudyError,
    TookTooLong,
    TooLarge,
    UnreadableFile,
)
from imaging.isolation.reader import IsolatedReader, ReadLimits
from imaging.isolation.transfer import UnexpectedData, from_json, to_json
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.selection import Preference, SeriesSummary
from imaging.volume import Geometry, Volume
from tests.evaluation.plain_chest import chest
from tests.imaging.small_ct import SmallCt

PATIENCE_S = 300.0
LIMITS = ReadLimits(memory_mb=3500, seconds=PATIENCE_S)


@pytest.fixture
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader(LIMITS) as reader:
        yield reader


@pytest.fixture(scope="module")
def long_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 1,500 slices, which takes a second or more to read."""
    folder = tmp_path_factory.mktemp("long")
    first, *_ = SmallCt(1).write(folder)
    image = dcmread(first)
    for index in range(1, 1500):
        image.ImagePositionPatient = [-30, -30, 0.5 * index - 30]
        image.save_as(folder / f"{index:04}.dcm")
    return folder


@contextmanager
def meanwhile(act: Callable[[int], object]) -> Iterator[None]:
    """Call ``act`` with the next child of a reading process, once it has set its limits."""

    def watch() -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for child in _readers():
                for grandchild in filter(_is_limited, _children(child)):
                    act(grandchild)
                    return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def _is_limited(child: int) -> bool:
    """Whether a child has set its limits; that of the processor's time comes last."""
    try:
        return resource.prlimit(child, resource.RLIMIT_CPU)[0] != resource.RLIM_INFINITY
    except ProcessLookupError:
        return False


def _readers() -> list[int]:
    """The reading processes of this one, which may have other children."""
    module = b"imaging.isolation.child"
    every = _children(os.getpid())
    return [one for one in every if module in Path(f"/proc/{one}/cmdline").read_bytes()]


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:  # it has ended meanwhile
        pass
    return found


def test_the_caller_chooses_among_the_series_that_the_child_sees(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    for number in ("1", "2"):
        ct = SmallCt(series=number, description=f"série {number}")
        ct.write(tmp_path / number)
    seen: list[tuple[str, Path]] = []

    def second_first(series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        seen.extend((one.header.series_description, one.folder) for one in series)
        return tuple(Preference(f"rule {one.uid[-1]}", -int(one.uid[-1])) for one in series)

    study = reader.read(tmp_path, select=second_first)
    assert (study.volume.description, study.rule) == ("série 2", "rule 2")
    assert sorted(seen) == [("série 1", tmp_path / "1"), ("série 2", tmp_path / "2")]
    for number in ("2", "1"):
        study = reader.read(tmp_path, f"série {number}")
        assert study.volume.series_uid == f"1.2.826.0.1.{number}"


def test_an_error_of_the_caller_s_choice_is_raised_and_the_next_study_is_read(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    SmallCt().write(tmp_path)

    def refuse(_series: tuple[SeriesSummary, ...]) -> tuple[Preference, ...]:
        raise NotCt("not this one", tmp_path)

    for _ in range(2):
        with pytest.raises(NotCt, match="not this one"):
            reader.read(tmp_path, select=refuse)
    assert reader.read(tmp_path).volume.series_uid == "1.2.826.0.1.1"


def test_a_damaged_header_is_refused_before_the_choice(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    first, *_ = SmallCt().write(tmp_path)
    first.write_bytes(b"")
    with pytest.raises(UnreadableFile):
        reader.read(tmp_path, select=lambda series: tuple(Preference("") for _ in series))


def test_a_study_is_read_as_in_this_process(reader: IsolatedReader, tmp_path: Path) -> None:
    write_series(chest(), tmp_path)
    expected, study = read_study(tmp_path), reader.read(tmp_path)
    for name in ("header", "source", "other_series", "limitations"):
        assert getattr(study, name) == getattr(expected, name)
    assert study.volume.series_uid == expected.volume.series_uid
    assert study.volume.hu.size == 0
    box, here = (reader.preprocess(study.volume, tmp_path), preprocess(expected.volume, tmp_path))
    assert box.lungs is not None
    assert here.lungs is not None
    np.testing.assert_array_equal(box.voxels, here.voxels)
    np.testing.assert_array_equal(box.geometry.direction, here.geometry.direction)
    for one in fields(here.lungs):
        np.testing.assert_equal(getattr(box.lungs, one.name), getattr(here.lungs, one.name))


def test_the_voxels_of_a_study_are_appended_to_a_file(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    """And the next study is read as always."""
    ct = SmallCt(12)
    ct.write(tmp_path / "ct")
    with (tmp_path / "voxels").open("w+b", buffering=0) as file:
        file.write(b"head" * 16)
        study = reader.read_whole(tmp_path / "ct", os.fdopen(os.dup(file.fileno()), "r+b", 0))
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    data = (tmp_path / "voxels").read_bytes()
    assert data[:64] == b"head" * 16
    assert data[64 : 64 + ct.hu().nbytes] == ct.hu().tobytes()
    assert reader.read(tmp_path / "ct").volume.hu.size == 0


def test_headers_come_after_the_lung_box_once(reader: IsolatedReader, tmp_path: Path) -> None:
    write_series(chest(), tmp_path)
    here = read_study(tmp_path)
    study = reader.read(tmp_path)
    assert here.headers is not None
    assert study.headers is not None
    assert study.headers() == b""  # the child is still at work
    reader.preprocess(study.volume, tmp_path)
    assert study.headers() == here.headers()
    again = reader.read(tmp_path)
    assert study.headers() == b""  # it is another study by now
    assert again.headers is not None
    reader.preprocess(again.volume, tmp_path)
    assert again.headers() == here.headers()


def test_a_refusal_names_the_file_as_the_caller_did_and_leaves_the_headers(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    """In both stages: a volume without lung is refused in the second."""
    files = SmallCt(12).write(tmp_path / "incomplete")
    files[5].unlink()
    without_lung = np.full((40, 60, 60), -1000, np.int16)
    without_lung[:, 20:40, 20:40] = 40
    write_series(Volume(without_lung, Geometry()), tmp_path / "no lung")
    with pytest.raises(IncompleteSeries) as refused:
        reader.read(tmp_path / "incomplete")
    study = reader.read(tmp_path / "no lung")
    with pytest.raises(NoLung) as later:
        reader.preprocess(study.volume, tmp_path / "no lung")
    assert (refused.value.file, later.value.file) == (files[6], tmp_path / "no lung")
    assert study.headers is not None
    assert len(read_source_headers(study.headers())) == 40


def test_a_volume_from_elsewhere_is_preprocessed_here(reader: IsolatedReader) -> None:
    volume = chest()
    box = reader.preprocess(volume, Path("array"))
    np.testing.assert_array_equal(box.voxels, preprocess(volume).voxels)


def test_the_child_has_ended_when_the_next_study_is_read(
    reader: IsolatedReader, tmp_path: Path, long_study: Path
) -> None:
    """A study whose preprocessing nobody waited for does not delay the next one."""
    write_series(chest(), tmp_path / "chest")
    reader.read(tmp_path / "chest")
    assert reader.read(long_study).volume.series_uid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_refuses_the_study_and_the_next_one_is_read(
    number: signal.Signals, reader: IsolatedReader, tmp_path: Path, long_study: Path
) -> None:
    write_series(chest(), tmp_path / "chest")
    refused = pytest.raises(UnreadableFile, match=rf"a decoder crashed on it \({number.name}\)")
    with meanwhile(lambda child: os.kill(child, number)), refused:
        reader.read(long_study)
    assert reader.read(tmp_path / "chest").volume.series_uid


def test_a_kill_by_the_system_is_a_fault_of_the_machine(
    reader: IsolatedReader, long_study: Path
) -> None:
    """The kernel kills a process where the memory of the whole machine has run out."""
    with meanwhile(lambda child: os.kill(child, signal.SIGKILL)), pytest.raises(MemoryError):
        reader.read(long_study)
    assert reader.read(long_study).volume.series_uid


def test_more_memory_than_allowed_is_too_large(tmp_path: Path) -> None:
    """The limit holds although the machine has more."""
    write_series(chest(), tmp_path / "chest")
    large = tmp_path / "large.nii.gz"
    zeros = sitk.Image(512, 512, 1600, sitk.sitkInt16)  # 800 MB, which compress to almost nothing
    sitk.WriteImage(zeros, str(large), useCompression=True)
    with IsolatedReader(replace(LIMITS, memory_mb=500)) as reader:
        with pytest.raises(TooLarge, match=r"more than 500 MB of memory: .* read_memory_mb"):
            reader.read(large)
        assert reader.read(tmp_path / "chest").volume.series_uid
        assert reader.peak_mb < 700  # of the child before


def test_a_damaged_length_is_damage_and_not_a_large_study(tmp_path: Path) -> None:
    """Four wrong bytes in a small file ask for 4 GB."""
    victim = SmallCt(12).write(tmp_path)[5]
    head, mark, rest = victim.read_bytes().partition(b"\x10\x00\x10\x00PN")
    victim.write_bytes(head + mark[:4] + b"UN\0\0\xf0\xff\xff\xff" + rest[2:])
    with (
        IsolatedReader(replace(LIMITS, memory_mb=500)) as reader,
        pytest.raises(StudyError) as refused,
    ):
        reader.read(tmp_path)
    assert refused.value.file == victim
    assert refused.value.kind != "TooLarge"


def test_more_time_than_allowed_is_told(long_study: Path) -> None:
    with (
        IsolatedReader(replace(LIMITS, seconds=0.05)) as reader,
        pytest.raises(TookTooLong, match=r"more than 0\.05 s: send one series"),
    ):
        reader.read(long_study)


@pytest.mark.long
def test_the_time_limit_does_not_blame_a_study_that_waited_for_the_disk(long_study: Path) -> None:
    """A child that is stopped uses no processor time, as one that waits for a dead share."""
    with (
        IsolatedReader(replace(LIMITS, seconds=2.0)) as reader,
        meanwhile(lambda child: os.kill(child, signal.SIGSTOP)),
        pytest.raises(TimeoutError, match="no answer from the disk or network share"),
    ):
        reader.read(long_study)


def test_a_reading_process_that_dies_is_started_again(
    reader: IsolatedReader, tmp_path: Path
) -> None:
    write_series(chest(), tmp_path)
    assert reader.read(tmp_path)
    for child in _readers():
        os.kill(child, signal.SIGKILL)
    try:
        reader.read(tmp_path)
    except MemoryError:  # it was not seen to be dead yet
        reader.read(tmp_path)


def test_no_file_stays_open_and_no_process_stays(tmp_path: Path) -> None:
    write_series(chest(), tmp_path)

    def read(times: int) -> int:
        with IsolatedReader(LIMITS) as reader:
            for _ in range(times):
                reader.preprocess(reader.read(tmp_path).volume, tmp_path)
            return len(os.listdir("/proc/self/fd"))

    before = _children(os.getpid())
    assert read(3) == read(1)
    assert _children(os.getpid()) == before


def test_children_leave_no_core_files(reader: IsolatedReader, long_study: Path) -> None:
    """A core file would hold a patient's data."""
    limits: list[int] = []

    def note(child: int) -> None:
        limits.append(resource.prlimit(child, resource.RLIMIT_CORE)[0])

    with meanwhile(note):
        reader.read(long_study)
    assert limits == [0]


Scalar = TypeVar("Scalar", bound=np.generic)
Aliased = TypeAliasType(
    "Aliased", np.ndarray[tuple[int, ...], np.dtype[Scalar]], type_params=(Scalar,)
)
"""As numpy 2.5 declares ``NDArray``: an alias that keeps its own name."""


@dataclass(frozen=True)
class Named:
    voxels: Aliased[np.int16]
    box: tuple[int, ...]


def test_arrays_arrive_also_as_a_later_numpy_declares_their_type_and_no_others() -> None:
    sent = Named(np.arange(24, dtype=np.int16).reshape(2, 3, 4), (1, 2, 3))
    with open(os.memfd_create("test"), "r+b", 0) as memory:
        values = json.loads(json.dumps(to_json(sent, memory.fileno())))
        found = from_json(Named, values, memory.fileno())
        np.testing.assert_array_equal(found.voxels, sent.voxels)
        assert found.box == sent.box
        other = to_json(replace(sent, voxels=np.zeros((2, 2), np.float32)), memory.fileno())
        with pytest.raises(UnexpectedData, match="no array of int16"):
            from_json(Named, other, memory.fileno())
