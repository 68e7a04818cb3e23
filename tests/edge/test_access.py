"""Only the agent's user may read what it writes about patients; a setgid outbox adds a group."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

import edge.cli.main as program
from edge.cli.output import ExitStatus
from edge.folders import AgentFolders
from evaluation.world import settings_in
from tests.edge.builders import open_store, put, put_all
from tests.edge.running_agent import whereabouts, work_off


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process that would give everything to everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


pytestmark = pytest.mark.usefixtures("open_umask")


def modes(top: Path) -> dict[str, set[str]]:
    """The modes of all folders, and of all files, at and below ``top``."""
    every = [top, *top.rglob("*")]
    return {
        "folders": {f"{stat.S_IMODE(p.stat().st_mode):04o}" for p in every if p.is_dir()},
        "files": {f"{stat.S_IMODE(p.stat().st_mode):04o}" for p in every if p.is_file()},
    }


PRIVATE = {"folders": {"0700"}, "files": {"0600"}}


def test_reports_studies_and_database_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """The sender's files were open to all; done, refused and pending studies, lock and database."""
    put_all(tmp_path / "inbox", a="x", b="bad", c="pending")
    work_off(tmp_path)
    assert whereabouts(tmp_path).keys() == {"a", "b", "c"}
    assert modes(tmp_path / "outbox") == PRIVATE
    assert modes(tmp_path / "state") == PRIVATE
    assert (tmp_path / "state" / "spool.sqlite3").is_file()


def test_screen_writes_private_files_whatever_the_umask(tmp_path: Path) -> None:
    source = put(tmp_path, "study")
    out = tmp_path / "below" / "report"
    result = CliRunner().invoke(program.app, ["screen", str(source), "--out", str(out)])
    assert result.exit_code == ExitStatus.REFUSED
    assert modes(tmp_path / "below") == PRIVATE


def test_the_programs_create_private_files_for_libraries_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "app", lambda: None)
    program.main()
    assert os.umask(0) == 0o077


def test_a_setgid_outbox_gives_its_reports_to_its_group_and_nothing_else(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    outbox.chmod(0o2750)
    put_all(tmp_path / "inbox", a="x", c="pending")
    work_off(tmp_path)
    (outbox / ".overread.lock").unlink()
    for marker in outbox.glob("*/.study-*"):
        marker.unlink()
    assert modes(outbox) == {"folders": {"2750"}, "files": {"0640"}}
    assert modes(tmp_path / "state") == PRIVATE


def test_folders_and_database_of_an_older_version_are_closed_at_the_start(tmp_path: Path) -> None:
    """The outbox keeps its group, which may be that of a program that fetches the reports."""
    folders = AgentFolders.of(settings_in(tmp_path))
    for folder in (folders.inbox, folders.outbox, folders.work, folders.done, folders.quarantine):
        folder.mkdir(parents=True)
    with open_store(folders.state / "spool.sqlite3"):
        (folders.state / "spool.sqlite3").chmod(0o644)
    put(folders.inbox, "a")
    with structlog.testing.capture_logs() as logs:
        work_off(tmp_path)
    assert modes(folders.state) == PRIVATE
    assert stat.S_IMODE(folders.outbox.stat().st_mode) == 0o770
    assert stat.S_IMODE(folders.inbox.stat().st_mode) == 0o777
    told = [(entry["event"], entry["folder"]) for entry in logs if "folder" in entry]
    assert ("folder closed to other users", str(folders.state)) in told
    assert ("folder is open to other users", str(folders.inbox)) in told


def test_a_link_in_a_study_changes_nothing_outside_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not ours")
    outside.chmod(0o644)
    (put(tmp_path / "inbox", "a") / "link").symlink_to(outside)
    work_off(tmp_path)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
