"""The folder that a demonstration works in."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edge.settings import load_settings
from edge.spool import AlreadyRunning
from evaluation.demo_folder import DemoFolder
from evaluation.errors import MissingData


def test_what_an_earlier_demonstration_left_is_cleared(tmp_path: Path) -> None:
    """Reports, logs and studies of before are gone; what the person put there stays."""
    folder = DemoFolder(tmp_path / "demo")
    with folder.fresh(None, keep=True):
        (folder.reports / "phantom-1").mkdir(parents=True)
        (folder.inbox / "phantom-1").mkdir()
        folder.log("edge").write_text("watching")
        folder.address.write_text("127.0.0.1:1")
        (folder.root / "notes.txt").write_text("mine")
    with folder.fresh(None):
        left = {path.name for path in folder.root.iterdir()}
        assert left == {".overread-demo", "inbox", "notes.txt"}
        assert list(folder.inbox.iterdir()) == []


@pytest.mark.parametrize("keep", [False, True])
def test_the_copy_of_a_study_stays_only_where_asked(tmp_path: Path, keep: bool) -> None:
    """After a failure too: a patient's pictures are not left lying about, reports and logs are."""
    folder = DemoFolder(tmp_path / "demo")
    context = folder.fresh(None, keep=keep)
    context.__enter__()
    for place in (folder.inbox / "study", folder.state, folder.reports / "study"):
        place.mkdir(parents=True)
    folder.log("edge").write_text("watching")
    assert not context.__exit__(OSError, OSError("disk"), None)
    assert (folder.inbox.exists(), folder.state.exists()) == (keep, keep)
    assert (folder.reports / "study").is_dir()
    assert folder.log("edge").is_file()


def test_a_folder_of_something_else_is_never_cleared(tmp_path: Path) -> None:
    """A folder that is not empty and that no demonstration made is refused as it is."""
    (tmp_path / "inbox").mkdir()
    with pytest.raises(MissingData, match="no earlier demonstration made it"):
        DemoFolder(tmp_path).fresh(None).__enter__()
    assert (tmp_path / "inbox").is_dir()


@pytest.mark.parametrize("study", [".", "inbox", "..", "state/ct.nii"])
def test_the_person_s_study_may_not_lie_in_the_way(tmp_path: Path, study: str) -> None:
    """A study inside the folder would be cleared, one around it copied into itself."""
    folder = DemoFolder(tmp_path / "demo")
    with folder.fresh(None, keep=True):
        folder.state.mkdir()
        (folder.state / "ct.nii").write_bytes(b"voxels")
    with pytest.raises(MissingData, match="give another folder"):
        folder.fresh(folder.root / study).__enter__()
    assert (folder.state / "ct.nii").read_bytes() == b"voxels"


def test_two_demonstrations_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is refused while the first is at work, and leaves its files alone."""
    folder = DemoFolder(tmp_path / "demo")
    with folder.fresh(None):
        folder.log("edge").write_text("watching")
        with pytest.raises(AlreadyRunning):
            folder.fresh(None).__enter__()
        assert folder.log("edge").read_text() == "watching"


def test_configuration_is_what_the_agent_reads(tmp_path: Path) -> None:
    """Paths with quotes, spaces and letters of any script come through TOML unharmed."""
    folder = DemoFolder(tmp_path / 'a "b" ü 肺')
    with folder.fresh(None):
        folder.configure("127.0.0.1:4711", 30.0)
        settings = load_settings(folder.config)
        assert (settings.inbox, settings.outbox) == (folder.inbox, folder.reports)
        assert (settings.cloud, settings.deadline_s) == ("127.0.0.1:4711", 30.0)
        written = tomllib.loads(folder.config.read_text(encoding="utf-8"))
        assert written["state_dir"] == str(folder.state)
