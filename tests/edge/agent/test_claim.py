"""A study is taken out of the inbox once, whatever happens in between."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent import claim as claiming
from edge.agent.claim import claim, resume_claim
from edge.agent.inbox import InboxEntry
from edge.folders import AgentFolders
from edge.report.folder import owner_of, take_folder
from edge.store.record import Record, Step
from edge.store.studies import StudyStore
from evaluation.world import settings_in
from tests.edge.builders import Box, open_store, put
from tests.edge.running_agent import Killed, killed


def folders_in(root: Path) -> AgentFolders:
    folders = AgentFolders.of(settings_in(root))
    folders.make()
    return folders


def take(study: InboxEntry, root: Path, store: StudyStore) -> Record | None:
    return claim(study, folders_in(root), store, lambda _key, _since_s: None)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_member_that_is_a_dangling_link_is_claimed_as_it_is(
    tmp_path: Path, store: StudyStore
) -> None:
    """A relative link beside its header dangles where it went; it still counts as present."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "x.mhd").write_text("ElementDataFile = x.raw\n")
    (inbox / "x.raw").symlink_to("../gone/x.raw")
    record = take(InboxEntry(("x.mhd", "x.raw"), "p", since_s=0.0), tmp_path, store)
    assert record is not None
    assert record.step is Step.CLAIMED
    moved = tmp_path / "state" / "work" / record.id / "x.raw"
    assert moved.is_symlink()
    assert list(inbox.iterdir()) == []


def test_a_study_that_another_took_is_forgotten(tmp_path: Path, store: StudyStore) -> None:
    put(tmp_path / "inbox", "a").rename(tmp_path / "elsewhere")
    assert take(InboxEntry(("a", "a.done"), "p", since_s=0.0), tmp_path, store) is None
    assert store.at(*Step) == []
    assert list((tmp_path / "state" / "work").iterdir()) == []


@pytest.mark.parametrize("crash_at", range(8))
def test_a_claim_from_another_filesystem_survives_a_crash_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, store: StudyStore
) -> None:
    box = Box(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    arrival = box.inbox.complete()[0]
    countdown = [crash_at]

    def crashing(name: str) -> None:
        real = getattr(claiming, name)

        def operation(*paths: Path) -> None:
            if name == "move" and paths[1].is_relative_to(tmp_path / "state" / "work"):
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
    try:
        take(arrival, tmp_path, store)
    except Killed:
        for record in store.at(Step.CLAIMING):
            resume_claim(record, folders_in(tmp_path), store)
    for again in box.inbox.complete():
        take(again, tmp_path, store)
    (record,) = store.at(*Step)
    assert record.step is Step.CLAIMED
    assert files(tmp_path / "state" / "work" / record.id) == ["a/0.dcm", "a/1.dcm"]
    assert files(tmp_path / "inbox") == []


@pytest.fixture
def other(tmp_path: Path) -> Iterator[StudyStore]:
    """The database of a second agent: it shares the outbox, and no lock keeps it out."""
    with open_store(tmp_path / "other.db") as store:
        yield store


def reports(root: Path) -> dict[str, str]:
    return {path.name: owner_of(path) for path in (root / "outbox").iterdir()}


@pytest.mark.parametrize(
    ("at", "owned"), [("edge.report.folder.Path.touch", False), ("edge.agent.claim.move", True)]
)
def test_a_claim_that_is_forgotten_gives_the_name_of_its_report_back(
    tmp_path: Path,
    store: StudyStore,
    other: StudyStore,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    owned: bool,
) -> None:
    """Killed between ``mkdir`` and the owner's file, or after it; the study is in the inbox."""
    box = Box(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    study = box.inbox.complete()[0]
    with monkeypatch.context() as patch:
        patch.setattr(at, killed)
        with pytest.raises(Killed):
            take(study, tmp_path, store)
    (record,) = store.at(Step.CLAIMING)
    assert reports(tmp_path) == {"a": record.id if owned else ""}
    resume_claim(record, folders_in(tmp_path), store)
    assert reports(tmp_path) == {}
    assert box.names() == ["a"]
    again = take(study, tmp_path, other)
    assert again is not None
    assert reports(tmp_path) == {"a": again.id}


def test_an_agent_whose_empty_folder_another_removed_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between ``mkdir`` and the owner's file, an agent that starts after a crash removes it."""
    real, times = Path.touch, [1]

    def touch(path: Path, **how: bool) -> None:
        if times.pop() if times else 0:
            path.parent.rmdir()
        real(path, **how)

    monkeypatch.setattr("edge.report.folder.Path.touch", touch)
    assert take_folder(tmp_path / "a", "k1")
    assert owner_of(tmp_path / "a") == "k1"
    assert not take_folder(tmp_path / "a", "k2")
