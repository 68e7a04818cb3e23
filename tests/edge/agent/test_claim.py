"""A study is taken out of the inbox once, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.agent import claim as claiming
from edge.agent.claim import claim, resume_claim
from edge.agent.inbox import CompleteStudy
from edge.store.studies import Record, Step, StudyStore
from tests.edge.builders import names, open_claim, put, watch
from tests.edge.running_agent import Killed


def take(study: CompleteStudy, root: Path, store: StudyStore) -> Record | None:
    (root / "work").mkdir(exist_ok=True)
    places = (root / "inbox", root / "work")
    return claim(study, *places, store, lambda _name: False, lambda _key, _since_s: None)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_claim_moves_the_study_and_drops_its_marker(tmp_path: Path, store: StudyStore) -> None:
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a b")
    record = take(inbox.complete()[0], tmp_path, store)
    assert record is not None
    assert record.step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["a b/0.dcm", "a b/1.dcm"]
    assert files(tmp_path / "inbox") == []


def test_the_start_of_the_budget_is_passed_on_before_a_file_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: StudyStore
) -> None:
    """A claim that is interrupted and finished later loses no part of the wait."""
    inbox, clock = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    (tmp_path / "work").mkdir()
    claimed: dict[str, float] = {}

    def full(*_: Path) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(claiming, "move", full)
    places = (tmp_path / "inbox", tmp_path / "work")
    with pytest.raises(OSError, match="no room"):
        claim(inbox.complete()[0], *places, store, lambda _: False, claimed.__setitem__)
    assert claimed == {record.id: clock.now_s for record in store.at(Step.CLAIMING)}
    assert len(claimed) == 1


def test_a_member_that_is_a_dangling_link_is_claimed_as_it_is(
    tmp_path: Path, store: StudyStore
) -> None:
    """A relative link beside its header dangles where it went; it still counts as present."""
    box = tmp_path / "inbox"
    box.mkdir()
    (box / "x.mhd").write_text("ElementDataFile = x.raw\n")
    (box / "x.raw").symlink_to("../gone/x.raw")
    record = take(CompleteStudy(("x.mhd", "x.raw"), "p", 0.0), tmp_path, store)
    assert record is not None
    assert record.step is Step.CLAIMED
    moved = tmp_path / "work" / record.id / "x.raw"
    assert moved.is_symlink()
    assert list(box.iterdir()) == []


def test_the_same_name_again_is_a_new_study(tmp_path: Path, store: StudyStore) -> None:
    """What arrives after the claim is claimed separately, and has a separate report."""
    inbox, _ = watch(tmp_path / "inbox")
    records = []
    for text in ("first", "second"):
        put(tmp_path / "inbox", "a", text)
        records.append(take(inbox.complete()[0], tmp_path, store))
    kept = [record for record in records if record is not None]
    assert [record.report_name for record in kept] == ["a", "a-2"]
    texts = [(tmp_path / "work" / r.id / "a" / "0.dcm").read_text() for r in kept]
    assert texts == ["first", "second"]


def test_a_study_that_another_took_is_forgotten(tmp_path: Path, store: StudyStore) -> None:
    put(tmp_path / "inbox", "a").rename(tmp_path / "elsewhere")
    assert take(CompleteStudy(("a", "a.done"), "p", 0.0), tmp_path, store) is None
    assert store.at(*Step) == []
    assert list((tmp_path / "work").iterdir()) == []


def test_an_interrupted_claim_that_moved_nothing_goes_back_to_the_inbox(
    tmp_path: Path, store: StudyStore
) -> None:
    inbox, _ = watch(tmp_path / "inbox")
    put(tmp_path / "inbox", "a")
    record = open_claim(store, "a")
    resume_claim(record, tmp_path / "inbox", tmp_path / "work", store)
    assert store.at(*Step) == []
    assert names(inbox) == ["a"]


def test_a_claim_interrupted_between_header_and_data_is_finished(
    tmp_path: Path, store: StudyStore
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "d.raw").write_text("data")
    record = open_claim(store, "d.mhd", "d.raw")
    (tmp_path / "work" / record.id).mkdir(parents=True)
    (tmp_path / "work" / record.id / "d.mhd").write_text("header")
    resume_claim(record, tmp_path / "inbox", tmp_path / "work", store)
    assert store.get(record.id).step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["d.mhd", "d.raw"]


@pytest.mark.parametrize("crash_at", range(8))
def test_a_claim_from_another_filesystem_survives_a_crash_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, store: StudyStore
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
    try:
        take(arrival, tmp_path, store)
    except Killed:
        for record in store.at(Step.CLAIMING):
            resume_claim(record, tmp_path / "inbox", tmp_path / "work", store)
    for again in inbox.complete():
        take(again, tmp_path, store)
    (record,) = store.at(*Step)
    assert record.step is Step.CLAIMED
    assert files(tmp_path / "work" / record.id) == ["a/0.dcm", "a/1.dcm"]
    assert files(tmp_path / "inbox") == []
