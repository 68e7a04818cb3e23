"""Disks, databases and files that fail an amendment: no verdict is lost, no version doubled."""

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from edge.amend.amender import MAX_REFUSAL_PAUSE_S, QUIET_S, Backoff
from edge.atomic_files import write_atomically
from tests.edge.builders import HandClock, SilentCloud, Site, site_at


@pytest.mark.parametrize(
    "full_at", ["report.v1.html", "report.v1.json", "finding_03.jpg", "report.html", "report.json"]
)
def test_a_disk_that_fills_up_costs_no_verdict_and_no_version(
    site: Site, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    site.study("a")
    first = site.report("a")
    site.cloud.answers = [2]

    def full(path: Path, data: bytes) -> None:
        if path.name == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomically(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("edge.report.write.write_atomically", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                site.turns()
            assert site.report("a") == first
    site.turns()
    assert (site.report("a")["version"], len(site.cloud.asked)) == (2, 1)
    assert site.report("a", ".v1") == first
    page = (site.places.outbox / "a" / "report.v1.html").read_text()
    assert "version 1<br>" in page


def test_one_report_that_cannot_be_written_does_not_stop_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        site.study(name)
    site.cloud.answers = [2, 2]

    def refuse(path: Path, data: bytes) -> None:
        if path.parent.name == "a":
            raise PermissionError(errno.EACCES, "not yours")
        write_atomically(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("edge.report.write.write_atomically", refuse)
        site.turns()
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]
    site.amender = site.start()
    site.turns()
    assert site.report("a")["version"] == 2
    assert len(site.cloud.asked) == 2


def test_a_report_that_was_taken_away_is_amended_all_the_same(site: Site) -> None:
    """In an emptied outbox the new version is written without the old one."""
    key = site.study("a").id
    out = site.places.outbox / "a"
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    site.cloud.answers = [2]
    site.turns()
    files = [f".study-{key}", "finding_02.jpg", "finding_03.jpg", "report.html", "report.json"]
    assert sorted(os.listdir(out)) == files
    assert site.report("a")["version"] == 2


def test_the_report_of_another_study_in_its_place_is_never_amended(site: Site) -> None:
    """Somebody removed the folder, and another agent took its name: the read is suspended."""
    site.study("a")
    out = site.places.outbox / "a"
    shutil.rmtree(out)
    out.mkdir()
    (out / ".study-another").touch()
    (out / "report.json").write_text("theirs")
    site.cloud.answers = [2]
    site.turns()
    assert (out / "report.json").read_text() == "theirs"
    assert site.amender.suspended == 1


def test_a_refused_study_waits_alone_up_to_an_hour_and_through_responses_of_the_link() -> None:
    """A closed read waits for nothing."""
    clock = HandClock()
    backoff = Backoff(5.0, clock, lambda _low, high: high)
    for attempts, pause_s in ((1, 5.0), (2, 10.0), (5000, MAX_REFUSAL_PAUSE_S)):
        backoff.refused("k", attempts)
        assert backoff.due("other")
        clock.sleep(pause_s - 0.5)
        assert not backoff.due("k")
        clock.sleep(0.5)
        assert backoff.due("k")
    backoff.refused("k", 1)
    backoff.no_response()
    assert not backoff.due("other")
    backoff.responded()
    assert (backoff.due("other"), backoff.due("k")) == (True, False)
    backoff.forget("k")
    assert backoff.due("k")


def test_a_database_that_is_older_than_the_report_overwrites_no_version(
    tmp_path: Path, cloud: SilentCloud
) -> None:
    """An old backup was put back: its verdicts come again, and make a version after the last."""
    (tmp_path / "state").mkdir()
    path, backup = tmp_path / "state" / "s.db", tmp_path / "backup.db"
    with site_at(tmp_path, cloud) as site:
        site.study("a")
        with closing(sqlite3.connect(path)) as now, closing(sqlite3.connect(backup)) as then:
            now.backup(then)
        for _ in range(2):
            cloud.answers = [1]
            site.turns()
            site.turns(QUIET_S)
        assert site.report("a")["version"] == 3
    kept = {p.name: p.read_bytes() for p in (tmp_path / "outbox" / "a").glob("report.v*.json")}
    last = (tmp_path / "outbox" / "a" / "report.json").read_bytes()
    for file in path.parent.glob("s.db*"):
        file.unlink()
    backup.rename(path)
    cloud.answers = [2]
    with site_at(tmp_path, cloud) as site:
        site.turns()
        assert (site.report("a")["version"], site.report("a")["status"]) == (4, "final")
    out = tmp_path / "outbox" / "a"
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert (out / "report.v3.json").read_bytes() == last
