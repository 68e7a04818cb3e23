from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import structlog

from edge import claim as claiming
from edge.claim import claim, resume_claim
from edge.ingest import Arrival, Inbox, report_names
from edge.spool import Record, Spool, Step
from tests.edge.cases import HandClock
from tests.edge.killable import put

QUIET_S = 5.0


def watch(folder: Path) -> tuple[Inbox, HandClock]:
    """An inbox and its clock."""
    clock = HandClock()
    folder.mkdir(exist_ok=True)
    return Inbox(folder, QUIET_S, clock), clock


def names(inbox: Inbox) -> list[str]:
    """What is complete now."""
    return [arrival.name for arrival in inbox.complete()]


def take(arrival: Arrival, root: Path, spool: Spool) -> Record | None:
    """Claim it from ``root/inbox`` into ``root/work``."""
    (root / "work").mkdir(exist_ok=True)
    return claim(arrival, root / "inbox", root / "work", spool, lambda _name: False)


def files(folder: Path) -> list[str]:
    """Every file below the folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_study_is_complete_when_it_has_been_quiet(tmp_path: Path) -> None:
    """Not a moment before the quiet time is over."""
    inbox, clock = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "Müller, Änne 漢字", done=False)
    assert names(inbox) == []
    clock.sleep(QUIET_S - 0.1)
    assert names(inbox) == []
    clock.sleep(0.1)
    assert names(inbox) == ["Müller, Änne 漢字"]


def test_every_change_starts_the_quiet_time_anew(tmp_path: Path) -> None:
    """A new file, a longer file and a file written again all count as a change."""
    inbox, clock = watch(tmp_path / "inbox")
    folder = put(tmp_path / "inbox", "a", done=False)
    changes = (
        lambda: (folder / "2.dcm").write_text("new"),
        lambda: (folder / "0.dcm").write_text("longer than before"),
        lambda: os.utime(folder / "1.dcm", ns=(1, 1)),
    )
    assert names(inbox) == []
    for change in changes:
        clock.sleep(QUIET_S - 1)
        change()
        assert names(inbox) == []
        clock.sleep(QUIET_S - 1)
        assert names(inbox) == []
    clock.sleep(1)
    assert names(inbox) == ["a"]


@pytest.mark.parametrize("marker", ["a/.done", "a.done"])
def test_a_done_file_completes_a_study_at_once(tmp_path: Path, marker: str) -> None:
    """In the folder or beside it."""
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a", done=False)
    (tmp_path / "inbox" / marker).touch()
    assert names(inbox) == ["a"]


def test_a_done_file_left_by_an_older_study_completes_nothing(tmp_path: Path) -> None:
    """A marker that is older than the files speaks of others."""
    inbox, _ = watch(tmp_path / "inbox")
    (tmp_path / "inbox" / "a.done").touch()
    written = (tmp_path / "inbox" / "a.done").stat().st_ctime_ns
    folder = put(tmp_path / "inbox", "a", done=False)
    while (folder / "0.dcm").stat().st_ctime_ns <= written:
        (folder / "0.dcm").touch()
    assert names(inbox) == []


def test_an_empty_folder_waits_for_its_files(tmp_path: Path) -> None:
    """A sender makes the folder first and may take its time."""
    inbox, clock = watch(tmp_path / "inbox")
    (tmp_path / "inbox" / "a").mkdir()
    for _ in range(3):
        assert names(inbox) == []
        clock.sleep(QUIET_S)


def test_hidden_temporary_linked_and_loose_files_are_left_alone(tmp_path: Path) -> None:
    """None is a study; of loose ones the log speaks once, and without their names."""
    inbox, clock = watch(tmp_path / "inbox")
    folder = tmp_path / "inbox"
    for name in (".hidden", "b.part", "c.tmp"):
        put(folder, name, done=False)
    (folder / "DOE_JOHN.dcm").write_text("one slice")
    (folder / "link").symlink_to(tmp_path)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert names(inbox) == []
            clock.sleep(QUIET_S)
    assert [(entry["count"], entry["kinds"]) for entry in logs] == [(2, ["", ".dcm"])]


def test_single_volume_files_are_studies_with_their_data(tmp_path: Path) -> None:
    """A detached header takes the data file that it names along, and no other."""
    inbox, clock = watch(tmp_path / "inbox")
    folder = tmp_path / "inbox"
    for name in ("a.nii.gz", "b.nrrd", "c.mha", "d.raw", "e.zraw"):
        (folder / name).write_text(name)
    (folder / "d.mhd").write_text("NDims = 3\nElementDataFile = d.raw\n")
    (folder / "n.nhdr").write_text("NRRD0004\ndata file: n.raw\n")
    (folder / "evil.mhd").write_text("ElementDataFile = ../../etc/passwd\n")
    inbox.complete()
    clock.sleep(QUIET_S)
    members = [arrival.members for arrival in inbox.complete()]
    assert members == [
        ("a.nii.gz",),
        ("b.nrrd",),
        ("c.mha",),
        ("d.mhd", "d.raw"),
        ("evil.mhd",),
        ("n.nhdr",),
    ]


def test_data_that_still_arrives_keeps_its_header_waiting(tmp_path: Path) -> None:
    """A header alone in transfer is complete only when its data has been quiet, too."""
    inbox, clock = watch(tmp_path / "inbox")
    (tmp_path / "inbox" / "d.mhd").write_text("ElementDataFile = d.raw\n")
    for size in range(1, 4):
        (tmp_path / "inbox" / "d.raw").write_bytes(bytes(size))
        assert names(inbox) == []
        clock.sleep(QUIET_S - 1)
    clock.sleep(1)
    assert names(inbox) == ["d.mhd"]


def test_report_names_are_short_enough_and_never_the_same() -> None:
    """Without the suffix of a volume, numbered from the second, at most 255 bytes."""
    assert list(islice(report_names("a.nii.gz"), 3)) == ["a", "a-2", "a-3"]
    assert next(report_names("1.2.840")) == "1.2.840"
    assert next(report_names("odd\udcff")) == "odd?"
    assert len(next(report_names("漢" * 80)).encode()) <= 200


def test_a_claim_moves_the_study_and_drops_its_marker(tmp_path: Path) -> None:
    """The files are in work, the inbox is empty, the row says so."""
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a b")
    with Spool(tmp_path / "s.db") as spool:
        record = take(inbox.complete()[0], tmp_path, spool)
        assert record is not None
        assert record.step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["a b/0.dcm", "a b/1.dcm"]
    assert files(tmp_path / "inbox") == []


def test_the_same_name_again_is_a_new_study(tmp_path: Path) -> None:
    """What arrives after the claim is claimed on its own, with a report of its own."""
    inbox, _ = watch(tmp_path / "inbox")
    with Spool(tmp_path / "s.db") as spool:
        records = []
        for text in ("first", "second"):
            put(tmp_path / "inbox", "a", text)
            records.append(take(inbox.complete()[0], tmp_path, spool))
    kept = [record for record in records if record is not None]
    assert [record.report_name for record in kept] == ["a", "a-2"]
    texts = [(tmp_path / "work" / r.id / "a" / "0.dcm").read_text() for r in kept]
    assert texts == ["first", "second"]


def test_a_study_that_another_took_is_forgotten(tmp_path: Path) -> None:
    """No row and no folder remain of it."""
    put(tmp_path / "inbox", "a").rename(tmp_path / "elsewhere")
    with Spool(tmp_path / "s.db") as spool:
        assert take(Arrival(("a", "a.done"), "p"), tmp_path, spool) is None
        assert spool.at(*Step) == []
    assert list((tmp_path / "work").iterdir()) == []


def test_an_interrupted_claim_that_moved_nothing_goes_back_to_the_inbox(tmp_path: Path) -> None:
    """The row is dropped and the study is seen again."""
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    with Spool(tmp_path / "s.db") as spool:
        record = spool.open_claim(("a",), "p", report_names("a"))
        assert record is not None
        resume_claim(record, tmp_path / "inbox", tmp_path / "work", spool)
        assert spool.at(*Step) == []
    assert names(inbox) == ["a"]


def test_a_claim_interrupted_between_header_and_data_is_finished(tmp_path: Path) -> None:
    """The data follows its header."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "d.raw").write_text("data")
    with Spool(tmp_path / "s.db") as spool:
        record = spool.open_claim(("d.mhd", "d.raw"), "p", report_names("d.mhd"))
        assert record is not None
        (tmp_path / "work" / record.id).mkdir(parents=True)
        (tmp_path / "work" / record.id / "d.mhd").write_text("header")
        resume_claim(record, tmp_path / "inbox", tmp_path / "work", spool)
        assert spool.get(record.id).step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["d.mhd", "d.raw"]


class Killed(BaseException):
    """Stands for a crash: nothing may catch it."""


@pytest.mark.parametrize("crash_at", range(8))
def test_a_claim_from_another_filesystem_survives_a_crash_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Killed before or after each of its file operations, it is finished whole, once."""
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    arrival = inbox.complete()[0]
    countdown = [crash_at]

    def crashing(name: str) -> None:
        real = getattr(claiming, name)

        def operation(*paths: Path) -> None:
            if name == "move" and paths[1].is_relative_to(tmp_path / "work"):
                raise OSError(18, "Invalid cross-device link")
            for act in (lambda: None, lambda: real(*paths)):
                if countdown[0] == 0:
                    countdown[0] = -1
                    raise Killed
                countdown[0] -= 1
                act()

        monkeypatch.setattr(claiming, name, operation)

    for name in ("move", "copy_whole", "remove"):
        crashing(name)
    with Spool(tmp_path / "s.db") as spool:
        try:
            take(arrival, tmp_path, spool)
        except Killed:
            for record in spool.at(Step.CLAIMING):
                resume_claim(record, tmp_path / "inbox", tmp_path / "work", spool)
        for again in inbox.complete():
            take(again, tmp_path, spool)
        (record,) = spool.at(*Step)
        assert record.step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["a/0.dcm", "a/1.dcm"]
    assert files(tmp_path / "inbox") == []
