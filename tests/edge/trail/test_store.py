"""The audit trail: no record lost, doubled or changed unseen, whatever dies on the way."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge.audit import Event
from edge.database import transaction
from edge.trail.records import TrailRecord, append, files_in, records_after
from edge.trail.store import TrailStore
from edge.trail.verify import Broken, Verified, verify
from tests.edge.builders import open_store
from tests.edge.running_agent import Killed, full_error


class Site:
    """A database with its trail, which a new process opens each time."""

    def __init__(self, root: Path) -> None:
        self.path, self.folder = root / "s.db", root / "trail"
        self.now, self.max_file_bytes = datetime(2026, 11, 30, 23, 59, tzinfo=UTC), 100_000

    @contextmanager
    def opened(self) -> Iterator[tuple[TrailStore, sqlite3.Connection]]:
        with open_store(self.path) as store:
            yield TrailStore(
                store.database, self.folder,
                now=lambda: self.now, max_file_bytes=self.max_file_bytes,
            ), store.database  # fmt: skip

    def record(self, *names: str, flush: bool = True) -> None:
        with self.opened() as (trail, _):
            for name in names:
                trail.record(Event.RECEIVED, study_key=name)
            if flush:
                trail.flush()

    def verified(self) -> Verified:
        return verify(self.folder, self.path)

    def assert_sound(self, *studies: str) -> None:
        """These studies are in the files, each once and in this order, in a sound chain."""
        assert self.studies() == [*studies]
        assert self.verified().broken is None

    def broken(self) -> Broken:
        found = self.verified().broken
        assert found is not None
        return found

    def fields(self, event: Event) -> list[dict[str, Any]]:
        return [dict(r.fields) for r in records_after(self.folder, 0) if r.event == event]

    def studies(self) -> list[str]:
        return [fields["study_key"] for fields in self.fields(Event.RECEIVED)]

    def reasons(self) -> list[str]:
        return [fields["reason"] for fields in self.fields(Event.CONTINUED)]

    def lines(self) -> list[str]:
        return [line for file in files_in(self.folder) for line in file.read_text().splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_records_are_chained_through_files_by_month_and_by_size(site: Site) -> None:
    """Every file begins with the agent's identity, and its name with its first record."""
    site.record("a")
    site.now += timedelta(minutes=2)
    site.record("b")
    site.max_file_bytes = 1
    site.record("c", "d")
    assert site.studies() == ["a", "b", "c", "d"]
    begins = ("01-2026-11", "03-2026-12", "05-2026-12", "07-2026-12")
    names = [file.name for file in files_in(site.folder)]
    assert names == [f"trail-0000000000{begin}.jsonl" for begin in begins]
    heads = [TrailRecord.parse(file.read_text().splitlines()[0]) for file in files_in(site.folder)]
    assert {head.event for head in heads} == {Event.FILE}
    assert len({head.fields["agent"] for head in heads}) == 1
    found = site.verified()
    assert (found.files, found.records, found.waiting, found.broken) == (4, 8, 0, None)


def test_a_record_belongs_to_the_transaction_of_its_step(site: Site) -> None:
    with site.opened() as (trail, database):
        with suppress(Killed), transaction(database):
            trail.record(Event.RECEIVED, study_key="undone")
            raise Killed
        with transaction(database):
            trail.record(Event.RECEIVED, study_key="done")
        trail.flush()
    site.assert_sound("done")


def test_a_record_has_the_identifiers_that_an_earlier_one_of_its_study_had(site: Site) -> None:
    with site.opened() as (trail, _):
        trail.record(Event.RECEIVED, study_key="a", patient_id="P1", study_uid="1.2")
        trail.record(Event.SENT, study_key="a", rois=2)
        trail.record(Event.SENT, study_key="other", rois=2)
        trail.forget("a")
        trail.record(Event.SENT, study_key="a", rois=3)
        trail.flush()
    assert site.fields(Event.SENT) == [
        {"study_key": "a", "rois": 2, "patient_id": "P1", "study_uid": "1.2"},
        {"study_key": "other", "rois": 2},
        {"study_key": "a", "rois": 3},
    ]


def test_a_removal_is_recorded_once_until_the_study_gets_files_again(site: Site) -> None:
    with site.opened() as (trail, _):
        for _ in range(2):
            trail.record_removal(Event.STUDY_REMOVED, "a", "too old")
        trail.forget_removals("a")
        trail.record_removal(Event.STUDY_REMOVED, "a", "too old")
        trail.flush()
    assert len(site.fields(Event.STUDY_REMOVED)) == 2


@pytest.mark.parametrize("call", ["write", "fsync", "confirmed"])
def test_a_death_while_records_are_written_loses_and_doubles_none(
    site: Site, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Before the disk has them, in the middle of a line, and before the database knows of it."""
    site.record("a")

    def dies(*given: Any) -> None:
        if call == "write":
            folder, lines = given
            with (folder / lines[0][0]).open("a") as file:
                file.write("\n".join(line for _, line in lines)[:-20])
        elif call == "confirmed":
            append(*given)
        raise Killed

    monkeypatch.setattr("os.fsync" if call == "fsync" else "edge.trail.store.append", dies)
    with pytest.raises(Killed):
        site.record("b", "c")
    assert site.verified().broken is None  # also as it is: the records are in the database
    monkeypatch.undo()
    site.record("d")
    site.assert_sound("a", "b", "c", "d")


def test_a_full_disk_leaves_the_records_where_they_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same store continues once there is room, without half of a line."""

    def full(folder: Path, lines: list[tuple[str, str]]) -> None:
        with (folder / lines[0][0]).open("a") as file:
            file.write(lines[0][1][:30])
        raise full_error()

    with site.opened() as (trail, _):
        trail.record(Event.RECEIVED, study_key="a")
        trail.flush()
        with monkeypatch.context() as patched:
            patched.setattr("edge.trail.store.append", full)
            trail.record(Event.RECEIVED, study_key="b")
            with pytest.raises(sqlite3.OperationalError):
                trail.flush()
        trail.record(Event.RECEIVED, study_key="c")
        trail.flush()
    site.assert_sound("a", "b", "c")


def test_two_processes_record_in_one_chain(site: Site) -> None:
    with site.opened() as (agent, _), site.opened() as (command, _):
        agent.record(Event.RECEIVED, study_key="a")
        agent.flush()
        command.record(Event.REQUEUED, study_key="a")
        agent.record(Event.RECEIVED, study_key="b")
        assert site.verified().waiting == 2
        agent.flush()
    events = [record.event for record in records_after(site.folder, 0)]
    assert events == [Event.FILE, Event.RECEIVED, Event.REQUEUED, Event.RECEIVED]
    assert site.verified().broken is None


def test_a_new_database_continues_the_chain_of_the_files(site: Site) -> None:
    """The agent keeps its identity, and a record says what was lost."""
    site.record("a", "b")
    agent = TrailRecord.parse(site.lines()[0]).fields["agent"]
    site.path.rename(site.path.with_name("damaged"))
    for file in site.path.parent.glob("s.db-*"):
        file.unlink()
    site.record("c")
    site.assert_sound("a", "b", "c")
    assert site.reasons() == ["the database is new; records that were only in the old one are lost"]
    site.max_file_bytes = 1
    site.record("d")
    last = TrailRecord.parse(files_in(site.folder)[-1].read_text().splitlines()[0])
    assert last.fields["agent"] == agent


def test_an_older_database_continues_after_the_files_that_are_newer(site: Site) -> None:
    """A backup was restored: its own records, and one made since, are not doubled or lost."""
    site.record("a")
    site.record("b", flush=False)
    backup = site.path.with_name("backup")
    with site.opened() as (_, database), closing(sqlite3.connect(backup)) as copy:
        database.backup(copy)
    site.record("c")
    for file in site.path.parent.glob("s.db*"):
        file.unlink()
    backup.rename(site.path)
    site.record("d")
    site.assert_sound("a", "b", "c", "d")
    assert site.reasons() == ["the database was older than the files"]


Change = Callable[[list[str]], list[str]]


def replaced(number: int, old: str, new: str) -> Change:
    def change(lines: list[str]) -> list[str]:
        assert old in lines[number]
        return [*lines[:number], lines[number].replace(old, new), *lines[number + 1 :]]

    return change


def rewritten(lines: list[str]) -> list[str]:
    """The last record is changed, and is again a record in its place."""
    values = json.loads(lines[-1])
    record = TrailRecord(**values | {"fields": {"study_key": "other"}})
    return [*lines[:-1], record.line]


CHANGES: dict[str, tuple[Change, int, str]] = {
    "a changed record": (replaced(2, '"b"', '"x"'), 4, "record 4 does not hold the hash"),
    "spaces": (replaced(2, ":", ": "), 3, "canonical"),
    "no JSON": (replaced(2, "{", ""), 3, "not JSON"),
    "a removed record": (lambda lines: lines[:2] + lines[3:], 3, "record 4 follows record 2"),
    "a record twice": (lambda lines: lines[:3] + lines[2:], 4, "record 3 follows record 3"),
    "two exchanged": (lambda x: [x[0], x[2], x[1], x[3]], 2, "record 3 follows record 1"),
    "the end cut off": (lambda lines: lines[:-1], 4, "records 4 to 4 are missing at the end"),
    "all but the head cut off": (lambda lines: lines[:1], 2, "records 2 to 4 are missing"),
    "the beginning cut off": (lambda lines: lines[1:], 1, "record 2 follows record 0"),
    "the last record changed": (rewritten, 4, "record 4 is not the one that the database expects"),
}


@pytest.fixture
def three(site: Site) -> Site:
    site.record("a", "b", "c")
    return site


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_trail_is_found_and_the_first_broken_record_named(three: Site, what: str) -> None:
    """Also after the agent has gone on: that hides nothing."""
    change, line, reason = CHANGES[what]
    (file,) = files_in(three.folder)
    file.write_text("".join(f"{one}\n" for one in change(three.lines())))
    broken = three.broken()
    assert (broken.file, broken.line) == (file.name, line)
    assert reason in broken.reason
    three.record("d")
    three.record("e")
    assert three.broken().line <= line + 1


def test_a_deleted_file_is_missed(three: Site) -> None:
    """Whether it was the last one, in the middle, or the only one."""
    three.max_file_bytes = 1
    three.record("d", "e")
    first, middle, last = files_in(three.folder)
    end = "are missing at the end"
    for file, says in ((last, f"records 7 to 8 {end}"), (middle, "record 7 follows")):
        text = file.read_text()
        file.unlink()
        assert says in three.broken().reason
        file.write_text(text)
    assert three.verified().broken is None
    for file in (first, middle, last):
        file.unlink()
    assert three.broken().reason == f"records 1 to 8 {end}"


def test_a_copy_without_its_database_is_checked_up_to_its_end(three: Site) -> None:
    """What was cut from the end of it cannot be missed, and the result says so."""
    (file,) = files_in(three.folder)
    file.write_text("".join(f"{one}\n" for one in three.lines()[:-1]))
    found = verify(three.folder)
    assert (found.broken, found.end_checked, found.records) == (None, False, 3)
    assert "nobody knows whether more followed" in found.text
