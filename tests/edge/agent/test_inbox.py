"""Which studies in the inbox are complete, and which files are ignored.

Since when a study has been complete: its budget begins there.
"""

import errno
import os
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import structlog

from edge.agent.inbox import UNFINISHED_WAITS
from edge.report.folder import report_names
from tests.edge.builders import QUIET_S, Box, HandClock, put
from tests.imaging.small_ct import SmallCt


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "inbox")


def test_a_study_is_complete_when_it_has_been_quiet_and_since_then(box: Box) -> None:
    put(box.folder, "Müller, Änne 漢字", done=False)
    assert box.names() == []
    began_s = box.clock() + QUIET_S
    assert box.later(QUIET_S - 0.1) == []
    box.clock.sleep(9.1)
    for _ in range(2):
        (arrival,) = box.inbox.complete()
        assert (arrival.name, arrival.since_s) == ("Müller, Änne 漢字", began_s)
        box.clock.sleep(4.0)


def test_every_change_restarts_the_quiet_time(box: Box) -> None:
    folder = put(box.folder, "a", done=False)
    changes = (
        lambda: (folder / "2.dcm").write_text("new"),
        lambda: (folder / "0.dcm").write_text("longer than before"),
        lambda: os.utime(folder / "1.dcm", ns=(1, 1)),
    )
    assert box.names() == []
    for change in changes:
        box.clock.sleep(QUIET_S - 1)
        change()
        assert box.names() == []
        assert box.later(QUIET_S - 1) == []
    assert box.later(1) == ["a"]


@pytest.mark.parametrize("marker", ["a/.done", "a.done"])
def test_a_done_file_completes_a_study_at_once(box: Box, marker: str) -> None:
    put(box.folder, "a", done=False)
    (box.folder / marker).touch()
    assert box.names() == ["a"]


def test_a_done_file_left_by_an_older_study_completes_nothing(box: Box) -> None:
    (box.folder / "a.done").touch()
    written = (box.folder / "a.done").stat().st_ctime_ns
    folder = put(box.folder, "a", done=False)
    while (folder / "0.dcm").stat().st_ctime_ns <= written:
        (folder / "0.dcm").touch()
    assert box.names() == []


def test_an_empty_folder_waits_for_its_files(box: Box) -> None:
    """A sender makes the folder first and may take its time."""
    (box.folder / "a").mkdir()
    box.stays()


def test_a_transfer_in_a_folder_is_waited_for(box: Box) -> None:
    """Ten times as long as otherwise: then the reader says which file has not arrived."""
    for name in ("a", "b"):
        (put(box.folder, name, done=False) / "3.dcm.part").touch()
    with structlog.testing.capture_logs() as logs:
        assert box.names() == []
        assert box.later(9.9 * QUIET_S) == []
    assert [log["event"] for log in logs] == ["transfers in the inbox have not finished"]
    (box.folder / "b" / "3.dcm.part").rename(box.folder / "b" / "3.dcm")  # finished
    assert box.names() == []
    assert box.later(0.1 * QUIET_S) == ["a"]
    assert box.later(0.9 * QUIET_S) == ["a", "b"]


def test_a_transfer_that_left_its_traces_is_not_waited_for(box: Box) -> None:
    """The file is there under its name; or a marker says that all has arrived."""
    (put(box.folder, "a", done=False) / "0.dcm.part").touch()
    marked = put(box.folder, "b", done=False)
    (marked / "3.dcm.part").touch()
    (marked / ".done").touch()
    assert box.names() == ["b"]
    assert box.later() == ["a", "b"]


def test_an_archive_is_taken_so_that_a_report_can_refuse_it(box: Box) -> None:
    (box.folder / "study.ZIP").write_bytes(b"PK\3\4")
    assert box.names() == []
    assert box.later() == ["study.ZIP"]


def test_hidden_temporary_linked_and_loose_files_are_left_alone(box: Box, tmp_path: Path) -> None:
    folder = box.folder
    for name in (".hidden", "b.part", "c.tmp"):
        put(folder, name, done=False)
    (folder / "DOE_JOHN.dcm").write_text("one slice")
    (folder / "link").symlink_to(tmp_path)
    with structlog.testing.capture_logs() as logs:
        box.stays()
    assert [(entry["count"], entry["suffixes"]) for entry in logs] == [(2, ["", ".dcm"])]


@pytest.mark.parametrize("where", ["a folder of its own", "the study itself"])
def test_an_unreadable_study_keeps_no_other_waiting(
    box: Box, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    bad = put(box.folder, "Doe, Jane", done=False)
    put(box.folder, "good")
    shut = bad if where == "the study itself" else bad / "series"
    shut.mkdir(exist_ok=True)
    listed = os.scandir

    def scandir(folder: str | Path) -> object:
        if Path(folder) == shut:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(os, "scandir", scandir)
        box.stays("good")
    (told,) = logs
    assert (told["count"], told["reasons"]) == (1, ["Permission denied"])
    assert box.names() == ["good"]
    assert box.later() == ["Doe, Jane", "good"]


def test_an_inbox_that_may_be_listed_but_not_entered_ends_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(box.folder, "a")

    def lstat(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", lstat)
        assert box.names() == []
    assert box.names() == ["a"]


def test_folders_in_folders_without_end_are_not_taken_and_stop_nothing(box: Box) -> None:
    """Functions that call themselves for each level would end the agent, at each start again."""
    put(box.folder, "good")
    folder = os.open(put(box.folder, "deep"), os.O_RDONLY)
    for _ in range(1500):  # more than a path may be long in one piece
        os.mkdir("n", dir_fd=folder)
        below = os.open("n", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with structlog.testing.capture_logs() as logs:
        assert box.names() == ["good"]
        assert box.later() == ["good"]
    (told,) = logs
    assert told["reasons"] == ["folders are nested more than 64 deep"]
    # pytest's own cleaning calls itself for each level too
    subprocess.run(["rm", "-r", box.folder], check=True)


def test_a_link_that_goes_in_circles_does_not_stop_the_inbox(box: Box) -> None:
    bad = put(box.folder, "a", done=False)
    (bad / "loop.dcm").symlink_to("loop.dcm")
    put(box.folder, "b")
    box.stays("b", polls=2)


def test_single_volume_files_are_studies_with_their_data(box: Box) -> None:
    folder = box.folder
    for name in ("a.nii.gz", "b.nrrd", "c.mha", "d.raw", "e.zraw"):
        (folder / name).write_text(name)
    (folder / "d.mhd").write_text("NDims = 3\nElementDataFile = d.raw\n")
    (folder / "n.nhdr").write_text("NRRD0004\ndata file: LIST\n")
    (folder / "evil.mhd").write_text("ElementDataFile = ../../etc/passwd\n")
    box.inbox.complete()
    box.clock.sleep(QUIET_S)
    members = [" ".join(arrival.members) for arrival in box.inbox.complete()]
    assert members == ["a.nii.gz", "b.nrrd", "c.mha", "d.mhd d.raw", "evil.mhd", "n.nhdr"]


@pytest.mark.parametrize(
    "data", ["zstudy", "z.nii", ".overread.lock", ".receiving", "x.part", "z.nii.done"]
)
def test_a_header_takes_no_other_study_and_nothing_hidden_along(box: Box, data: str) -> None:
    put(box.folder, "zstudy")
    (box.folder / ".receiving").mkdir()
    for name in (".overread.lock", "x.part", "z.nii", "z.nii.done"):
        (box.folder / name).touch()
    (box.folder / "d.mhd").write_text(f"ElementDataFile = {data}\n")
    assert box.names() == ["z.nii", "zstudy"]
    box.clock.sleep(QUIET_S)
    assert [one.members for one in box.inbox.complete()] == [
        ("d.mhd",), ("z.nii", "z.nii.done"), ("zstudy",)
    ]  # fmt: skip


def test_data_that_still_arrives_keeps_its_header_waiting(box: Box) -> None:
    (box.folder / "d.mhd").write_text("ElementDataFile = d.raw\n")
    for size in range(1, 4):
        (box.folder / "d.raw").write_bytes(bytes(size))
        assert box.names() == []
        box.clock.sleep(QUIET_S - 1)
    assert box.later(1) == ["d.mhd"]


@pytest.mark.parametrize(
    ("header", "text"),
    [("d.mhd", "ElementDataFile = d.raw\n"), ("d.nhdr", "NRRD0004\ndata file: d.raw\n")],
)
def test_a_header_waits_for_data_under_a_passing_name(box: Box, header: str, text: str) -> None:
    (box.folder / header).write_text(text)
    part = box.folder / "d.raw.part"
    part.write_bytes(b"1")
    with structlog.testing.capture_logs() as logs:
        box.stays()
    assert logs == [{"event": "headers lack their data files", "count": 1, "log_level": "warning"}]
    part.rename(box.folder / "d.raw")
    assert box.names() == []
    box.clock.sleep(QUIET_S)
    assert [arrival.members for arrival in box.inbox.complete()] == [(header, "d.raw")]


@pytest.mark.parametrize("data", ["LOCAL", "LIST", "list 2", "img%03d.raw 1 9 1", "/a/d.raw", ""])
def test_a_header_waits_for_nothing_that_cannot_come(box: Box, data: str) -> None:
    """A keyword, a pattern, a path: the reader names what is wrong."""
    (box.folder / "d.mhd").write_text(f"ElementDataFile = {data}\n")
    assert box.names() == []
    assert box.later() == ["d.mhd"]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_an_inbox_that_cannot_be_listed_is_waited_for(
    box: Box, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    put(box.folder, "a", done=False)
    assert box.names() == []

    def listdir(folder: Path) -> list[str]:
        raise OSError(code, os.strerror(code), str(folder))

    for _ in range(2):
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(os, "listdir", listdir)
            box.stays()
        assert [(entry["log_level"], entry["reason"]) for entry in logs] == [
            ("error", os.strerror(code))
        ]
        assert box.names() == ["a"]


def test_report_names_are_short_enough_and_never_the_same() -> None:
    assert list(islice(report_names("a.nii.gz"), 3)) == ["a", "a-2", "a-3"]
    assert next(report_names("1.2.840")) == "1.2.840"
    assert next(report_names("odd\udcff")) == "odd?"
    assert len(next(report_names("漢" * 80)).encode()) <= 200


@pytest.mark.parametrize(
    ("age_s", "waited_s"), [(2.0, 2.0), (0.0, 0.0), (60.0, 6.0), (-3600.0, 0.0)]
)
def test_a_study_complete_between_two_polls_is_so_since_its_newest_file(
    tmp_path: Path, age_s: float, waited_s: float
) -> None:
    """But after the one look and before the other, whatever the wall clock says."""
    wall = HandClock()
    box = Box(tmp_path / "inbox", wall)
    assert box.names() == []
    box.clock.sleep(6.0)
    folder = put(tmp_path / "inbox", "a")
    os.utime(folder / "0.dcm", (1.0, 1.0))  # a copy that brought its dates along
    newest = max(path.stat().st_ctime for path in (folder, *folder.iterdir()))
    wall.now_s = newest + age_s
    (arrival,) = box.inbox.complete()
    assert box.clock() - arrival.since_s == pytest.approx(waited_s, abs=1e-3)


def test_a_study_of_which_announced_images_are_missing_is_held_for_a_bounded_while(
    box: Box,
) -> None:
    announced = {"ImagesInAcquisition": 20}
    SmallCt(count=12, attributes=announced).write(box.folder / "part")
    SmallCt(count=20, attributes=announced).write(box.folder / "whole")
    assert box.names() == []
    assert box.later() == ["whole"]
    assert box.later((UNFINISHED_WAITS - 1) * QUIET_S - 0.1) == ["whole"]
    box.clock.sleep(0.1)
    part, _ = box.inbox.complete()
    assert (part.name, part.since_s) == ("part", box.clock())


def test_a_held_study_is_complete_when_the_rest_arrives_or_it_is_marked(box: Box) -> None:
    images = SmallCt(count=20, attributes={"ImagesInAcquisition": 20}).images()
    for name in ("a", "b"):
        SmallCt().write(box.folder / name, images[:12])
    assert box.names() == []
    assert box.later() == []
    (box.folder / "a" / ".done").touch()
    assert box.names() == ["a"]
    SmallCt().write(box.folder / "b" / "rest", images[12:])
    assert box.names() == ["a"]
    assert box.later() == ["a", "b"]
