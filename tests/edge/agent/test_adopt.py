"""A damaged, lost or replaced database: every study is found again in the folders."""

import errno
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from edge.agent import claim as claiming
from edge.agent import loop
from edge.database import InvalidDatabase, StepHook
from edge.job import Job
from edge.run import ReadStudy, run_agent
from edge.store.record import Step
from edge.store.repair import damaged_databases
from evaluation.world import settings_in
from tests.edge.agent.test_join import FIRST, REST, assert_one_study, send
from tests.edge.builders import open_store, put, put_all, report_in
from tests.edge.running_agent import (
    Killed,
    Reader,
    command,
    database,
    killed,
    once_at,
    quick_read,
    reading,
    sql,
    statuses,
    whereabouts,
)


class Passes(threading.Event):
    """A stop that is set after that many passes of the main loop."""

    def __init__(self, count: int = 40) -> None:
        super().__init__()
        self._left = count

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def work(
    root: Path,
    read: ReadStudy = quick_read,
    on_step: StepHook | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> None:
    given = settings_in(root, **settings)
    run_agent(given, read=read, stop=Passes(), on_step=on_step)


def busy_site(root: Path) -> None:
    """One study done, one refused, one provisional, one killed in its reading, one behind it."""
    for name, text in (("a", "x"), ("b ü", "bad"), ("c", "pending")):
        put(root / "inbox", name, text)
    work(root)
    for name in ("d", "e"):
        put(root / "inbox", name)

    with pytest.raises(Killed):
        work(root, reading())
    assert statuses(root) == {"a": "final", "b ü": "rejected", "c": "provisional"}
    assert len(list((root / "state" / "work").iterdir())) == 2


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(4096 * 2))


def forget_rows(path: Path) -> None:
    """What an old backup, or a lost write-ahead log, looks like."""
    sql(path, "DELETE FROM studies", "DELETE FROM pending")


DAMAGES = [noise, cut, empty, overwrite_a_page, forget_rows, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_study_is_lost_with_the_database(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    busy_site(tmp_path)
    sql(database(tmp_path), "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database(tmp_path))
    work(tmp_path)
    ends = {name: ["done"] for name in "acde"} | {"b ü": ["quarantine"]}
    assert whereabouts(tmp_path) == ends
    assert statuses(tmp_path) == dict.fromkeys("acde", "final") | {"b ü": "rejected"}
    assert os.listdir(tmp_path / "state" / "work") == []
    kept = damaged_databases(database(tmp_path))
    assert len(kept) == (damage not in (empty, forget_rows, Path.unlink))
    with open_store(database(tmp_path)) as store:
        refused = store.at(Step.QUARANTINED)
        assert [(r.name, r.kind, r.reason) for r in refused] == [("b ü", "NotCt", "this is no CT")]
        assert {r.name: r.report_name for r in store.at(Step.DONE)} == {n: n for n in "acde"}


def test_a_provisional_report_whose_pending_read_is_lost_says_that_none_will_come(
    tmp_path: Path,
) -> None:
    busy_site(tmp_path)
    database(tmp_path).unlink()
    work(tmp_path)
    out = tmp_path / "outbox" / "c"
    before, after = report_in(tmp_path, "c", ".v1"), report_in(tmp_path, "c")
    assert (before["status"], after["status"], after["version"]) == ("provisional", "final", 2)
    assert after["findings"] == before["findings"]
    (change,) = after["changes"]
    assert (change["kind"], change["version"]) == ("given up", 2)
    assert "lost with the database" in change["text"]
    assert change["text"] in after["second_reading_reason"]
    page = (out / "report.html").read_text()
    assert "Final report, version 2<br>" in page
    assert "report version 2 of" in page  # printed on each page
    assert "report version 1 of" not in page
    assert "lost with the database" in page
    assert "Provisional" not in page
    assert "Provisional report" in (out / "report.v1.html").read_text()


def test_a_database_that_is_damaged_while_the_agent_runs_ends_it_and_is_set_aside(
    tmp_path: Path,
) -> None:
    put(tmp_path / "inbox", "a")
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def fail(_job: Job) -> None:
        raise error

    with pytest.raises(InvalidDatabase, match=r"spool\.sqlite3: .* malformed: restart the agent"):
        work(tmp_path, reading(fail))
    assert len(damaged_databases(database(tmp_path))) == 1
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final"}
    assert whereabouts(tmp_path) == {"a": ["done"]}


def test_a_header_whose_data_were_still_in_the_inbox_gets_them(tmp_path: Path) -> None:
    """Killed between header and data, and the database lost: they are one study again."""
    seen: list[list[str]] = []

    def look(job: Job) -> None:
        seen.append(sorted(os.listdir(job.source.parent)))

    folder = tmp_path / "state" / "work" / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "x.mhd").write_text("ElementDataFile = x.raw\n")
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "x.raw").write_text("data")
    work(tmp_path, reading(look))
    assert seen == [["x.mhd", "x.raw"]]
    assert statuses(tmp_path) == {"x": "final"}


def test_folders_that_cannot_be_listed_at_the_start_are_adopted_from_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network share that fails for a moment does not end the agent."""
    busy_site(tmp_path)
    database(tmp_path).unlink()
    real, faults = loop.strays, [1]

    def strays(*places: Any) -> list[tuple[str, Step]]:
        if faults:
            faults.pop()
            raise OSError(errno.EIO, "Input/output error")
        return real(*places)

    monkeypatch.setattr(loop, "strays", strays)
    monkeypatch.setattr("edge.site.PAUSE_POLLS", 1)
    work(tmp_path)
    assert whereabouts(tmp_path) == {"b ü": ["quarantine"], **{name: ["done"] for name in "acde"}}


def test_killed_before_its_files_moved_and_its_row_lost_a_study_is_reported_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of its report was made already. One with a file of somebody else stays."""
    put(tmp_path / "inbox", "a")
    put(tmp_path / "inbox", "b")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(claiming, "move", killed)
            with pytest.raises(Killed):
                work(tmp_path)
        database(tmp_path).unlink()
    (tmp_path / "outbox" / "b").mkdir()
    (tmp_path / "outbox" / "b" / "mine").touch()
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final", "b-2": "final"}
    assert sorted(os.listdir(tmp_path / "outbox")) == [".overread.lock", "a", "b", "b-2"]
    assert os.listdir(tmp_path / "state" / "work") == []


def test_a_study_that_left_quarantine_before_the_database_was_lost_has_no_reason(
    tmp_path: Path,
) -> None:
    """Killed between two moves, when more images came for a study that was refused."""
    key = "0" * 32
    put(tmp_path / "state" / "work" / key, "a")
    (tmp_path / "state" / "quarantine" / key).mkdir(parents=True)
    reason = {"kind": "IncompleteSeries", "reason": "slice 12 is missing", "file": "12.dcm"}
    (tmp_path / "state" / "quarantine" / key / "reason.json").write_text(json.dumps(reason))
    work(tmp_path)
    with open_store(database(tmp_path)) as store:
        (record,) = store.at(Step.DONE)
    assert (record.id, record.kind, record.reason, record.file) == (key, "", "", "")


def test_images_that_joined_a_study_before_the_database_was_lost_are_read(tmp_path: Path) -> None:
    """They lie with their study, and its report does not have them yet."""
    reader = Reader()
    send(tmp_path, "a", FIRST)
    work(tmp_path, reader)
    send(tmp_path, "a", REST)

    with pytest.raises(Killed):
        work(tmp_path, reading())
    (folder,) = (tmp_path / "state" / "work").iterdir()
    (folder / ".report").mkdir()  # version 2, as it was being written
    database(tmp_path).unlink()
    work(tmp_path, reader)
    assert [len(images) for images in reader.read] == [12, 20]
    assert_one_study(tmp_path)


def test_a_database_that_is_older_than_the_files_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A backup that was put back: studies that it has as claimed are done by now."""
    put_all(tmp_path / "inbox", a="x", b="bad", c="pending")

    with pytest.raises(Killed):
        work(tmp_path, on_step=once_at(Step.READING, True))
    sql(database(tmp_path), "PRAGMA wal_checkpoint(TRUNCATE)")
    backup = database(tmp_path).read_bytes()
    work(tmp_path)
    before = whereabouts(tmp_path), statuses(tmp_path)
    shutil.rmtree(tmp_path / "outbox" / "a")  # as somebody who fetched it
    database(tmp_path).write_bytes(backup)
    work(tmp_path)
    assert whereabouts(tmp_path) == before[0]
    assert statuses(tmp_path) == {"b": "rejected", "c": "final"}
    with open_store(database(tmp_path)) as store:
        assert {r.name: r.step for r in store.at(*Step)} == {
            "a": Step.DONE,
            "b": Step.QUARANTINED,
            "c": Step.DONE,
        }


def remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def remove_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def replace_by_a_backup(path: Path) -> None:
    """Made before the site was busy; the log of the replaced one stays beside it."""
    backup = path.with_name("backup")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
        target.execute("PRAGMA foreign_keys = OFF")
        target.execute("DELETE FROM pending")
        target.execute("DELETE FROM studies WHERE step != 'quarantined'")
        target.commit()
    backup.replace(path)


def rename(path: Path) -> None:
    path.rename(path.with_name("mine"))


@pytest.mark.parametrize("at", [(Step.CLAIMING, False), (Step.READING, True), (Step.DONE, False)])
@pytest.mark.parametrize("lose", [remove, Path.unlink, remove_log, rename, replace_by_a_backup])
def test_a_database_that_is_deleted_or_replaced_ends_the_agent_and_the_next_start_adopts(
    tmp_path: Path, lose: Callable[[Path], None], at: tuple[Step, bool]
) -> None:
    """It does not write on into a file that nobody else can open."""
    busy_site(tmp_path)
    put(tmp_path / "inbox", "f")
    hook = once_at(*at, lambda: lose(database(tmp_path)))
    with pytest.raises(
        InvalidDatabase, match=r"spool\.sqlite3.*: deleted, renamed or replaced while"
    ):
        work(tmp_path, on_step=hook)
    for file in (tmp_path / "state").glob("mine"):  # the log of a renamed file is in it
        with open_store(file) as store:
            assert {record.name for record in store.at(*Step)} >= {"a", "d"}
    work(tmp_path)
    assert whereabouts(tmp_path) == {**{name: ["done"] for name in "acdef"}, "b ü": ["quarantine"]}
    c = "provisional" if lose is remove_log else "final"  # the log is still open, and saved
    expected = dict.fromkeys("adef", "final") | {"b ü": "rejected", "c": c}
    assert statuses(tmp_path) == expected
    assert damaged_databases(database(tmp_path)) == []
    with open_store(database(tmp_path)) as store:
        assert {record.name for record in store.at(*Step)} == {*"acdef", "b ü"}


def test_a_share_on_which_files_seem_to_be_replaced_by_themselves_does_not_end_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some give a file another number with each question."""
    numbers = count()
    monkeypatch.setattr("edge.database.files_of", lambda path: {path: (0, next(numbers))})
    put(tmp_path / "inbox", "a")
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final"}


def test_a_state_folder_that_is_removed_ends_the_program_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start makes it again."""
    put(tmp_path / "inbox", "a")
    lose = once_at(Step.DONE, True, lambda: shutil.rmtree(tmp_path / "state"))
    running = partial(run_agent, read=quick_read, stop=Passes(), on_step=lose)
    monkeypatch.setattr("edge.cli.agent.run_agent", running)
    line = command(tmp_path, "run", status=1).stderr.splitlines()[-1]
    assert line.startswith(f"InvalidDatabase: {database(tmp_path)}")
    assert "while the agent ran: restart the agent, which" in line
    put(tmp_path / "inbox", "b")
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final", "b": "final"}
    assert whereabouts(tmp_path) == {"b": ["done"]}
