"""The commands ``queue`` and ``requeue``: what there is, and the way back into the inbox."""

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from edge import queue
from edge.agent import claim as claiming
from edge.atomic_files import move as real_move
from edge.run import site_of
from edge.store.record import Step
from evaluation.world import settings_in
from tests.edge.agent.test_adopt import busy_site, cut, noise, work
from tests.edge.builders import put, put_all
from tests.edge.running_agent import command, database, sql, statuses, whereabouts
from tests.edge.status.site import Site, visiting


def shown(root: Path, *arguments: str) -> dict[str, Any]:
    result = command(root, "queue", "--json", *arguments, status=0)
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_queue_shows_every_study_that_is_not_done_and_why(tmp_path: Path) -> None:
    busy_site(tmp_path)
    put(tmp_path / "inbox", "f", done=False)
    (tmp_path / "inbox" / "x.mhd").write_text("ElementDataFile = x.raw\n")
    values = shown(tmp_path)
    assert values["running"] is False
    found = {(one["name"], one["state"]): one for one in values["studies"]}
    assert found.keys() == {
        ("b ü", "refused"),
        ("c", "pending"),
        ("d", "reading"),
        ("e", "waiting"),
        ("f", "arriving"),
        ("x.mhd", "arriving"),
    }
    assert found["b ü", "refused"]["reason"] == "NotCt: this is no CT"
    assert found["d", "reading"]["attempts"] == 1
    assert "Unreachable" in found["c", "pending"]["reason"]
    assert found["x.mhd", "arriving"]["reason"] == "its data file is missing"
    assert {one["name"] for one in shown(tmp_path, "--all")["studies"]} >= {"a", "c"}


def test_queue_says_how_much_room_a_study_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from another filesystem; a copy that would fill the disk is not begun."""
    put(tmp_path / "inbox", "a", "x" * 1_300_000)

    def move(source: Path, target: Path) -> None:
        if tmp_path / "state" in target.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real_move(source, target)

    room = Mock(total=99, used=99, free=500_000)
    monkeypatch.setattr(claiming, "move", move)
    monkeypatch.setattr("edge.agent.claim.shutil.disk_usage", lambda _path: room)
    monkeypatch.setattr("edge.site.PAUSE_POLLS", 1)
    work(tmp_path)
    (one,) = shown(tmp_path)["studies"]
    assert not list((tmp_path / "state" / "work").rglob("*.dcm"))
    assert (one["name"], one["state"]) == ("a", "moving in")
    assert one["reason"] == "waits for room: 2.6 MB are needed, 0.5 MB are free"
    with visiting(Site(tmp_path).open_app()) as visit:
        assert one["reason"] in visit.get("/").text
    monkeypatch.undo()
    assert shown(tmp_path)["studies"][0]["reason"] == ""
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final"}


def test_queue_is_a_table_for_people(tmp_path: Path) -> None:
    """Names come from outside: an escape sequence in one does not reach the terminal."""
    put(tmp_path / "inbox", "a\x1b[31m", "bad")
    work(tmp_path)
    result = command(tmp_path, "queue", status=0)
    assert "The agent does not run" in result.stdout
    assert "refused" in result.stdout
    assert os.listdir(tmp_path / "state" / "quarantine")[0] in result.stdout
    assert "\x1b[31m" not in result.stdout


def test_queue_of_a_machine_that_never_ran_is_empty(tmp_path: Path) -> None:
    assert shown(tmp_path) == {"running": False, "studies": []}


def test_a_refused_study_is_read_again_after_requeue(tmp_path: Path) -> None:
    put(tmp_path / "inbox", "b ü", "bad")
    work(tmp_path)
    for path in (tmp_path / "state" / "quarantine").glob("*/study/*/*.dcm"):
        path.write_text("mended")
    result = command(tmp_path, "requeue", "b ü", status=0)
    assert result.stdout == "back in the inbox: b ü\n"
    assert list((tmp_path / "state" / "quarantine").iterdir()) == []
    assert shown(tmp_path)["studies"][0]["state"] == "arriving"
    work(tmp_path)
    assert statuses(tmp_path) == {"b ü": "rejected", "b ü-2": "final"}
    assert whereabouts(tmp_path) == {"b ü": ["done"]}


def test_all_refused_studies_come_back_at_once_and_done_ones_by_their_key(tmp_path: Path) -> None:
    put_all(tmp_path / "inbox", a="x", b="bad", c="bad")
    work(tmp_path)
    command(tmp_path, "requeue", "--all-failed", status=0)
    assert sorted(n for n in os.listdir(tmp_path / "inbox") if n[0] != ".") == ["b", "c"]
    (key,) = os.listdir(tmp_path / "state" / "done")
    command(tmp_path, "requeue", key, status=0)
    assert (tmp_path / "inbox" / "a").is_dir()
    assert command(tmp_path, "requeue", "--all-failed").stdout == "none\n"


def test_requeue_replaces_nothing_in_the_inbox_and_names_what_it_cannot_find(
    tmp_path: Path,
) -> None:
    put(tmp_path / "inbox", "b", "bad")
    work(tmp_path)
    put(tmp_path / "inbox", "b", "newer", done=False)
    for arguments, said in ((["b"], "the inbox has another"), (["z"], "no study of this name")):
        result = command(tmp_path, "requeue", *arguments, status=1)
        assert said in result.stderr
    assert (tmp_path / "inbox" / "b" / "0.dcm").read_text() == "newer"
    assert len(list((tmp_path / "state" / "quarantine").glob("*/study/b/0.dcm"))) == 1


@pytest.mark.parametrize("arguments", [[], ["b", "--all-failed"]])
def test_requeue_wants_one_study_or_all(tmp_path: Path, arguments: list[str]) -> None:
    command(tmp_path, "requeue", *arguments, status=2)


def test_a_header_goes_back_after_its_data_also_to_another_filesystem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never alone in the inbox, where the agent would wait for its data."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "x.mhd").write_text("ElementDataFile = x.raw\n")
    (tmp_path / "inbox" / "x.raw").write_text("data")
    (tmp_path / "inbox" / "x.mhd.done").touch()
    work(tmp_path)
    order: list[str] = []

    def move(source: Path, target: Path) -> None:
        if target.parent == tmp_path / "inbox":
            order.append(target.name)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real_move(source, target)

    monkeypatch.setattr(queue, "move", move)
    assert queue.requeue("x.mhd", site_of(settings_in(tmp_path))) == ["x.mhd"]
    assert order == ["x.raw", "x.mhd"]
    assert (tmp_path / "inbox" / "x.raw").read_text() == "data"
    assert list((tmp_path / "state" / "done").iterdir()) == []


def test_every_step_has_a_word() -> None:
    assert queue.STATES.keys() == set(Step)


def test_requeue_makes_no_database_where_there_is_none(tmp_path: Path) -> None:
    """It would belong to the person who asks, and the agent could not open it."""
    (tmp_path / "state").mkdir()
    result = command(tmp_path, "requeue", "a", status=1)
    assert "spool.sqlite3 is missing" in result.stderr
    assert list((tmp_path / "state").iterdir()) == []


def keep_the_first_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


@pytest.mark.parametrize(
    "damage", [noise, cut, keep_the_first_page], ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("arguments", [["queue"], ["requeue", "a"]], ids=" ".join)
def test_a_damaged_database_is_an_error_that_says_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None], arguments: list[str]
) -> None:
    """Found while it is opened, or while it is read."""
    busy_site(tmp_path)
    sql(database(tmp_path), "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database(tmp_path))
    result = command(tmp_path, *arguments, status=1)
    assert result.stderr.startswith(f"InvalidDatabase: {database(tmp_path)}")
    assert "restart the agent, which sets what is damaged aside and adopts" in result.stderr
    work(tmp_path)
    command(tmp_path, *arguments, status=0)


def test_a_database_that_another_process_holds_is_named(tmp_path: Path) -> None:
    busy_site(tmp_path)
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        result = command(tmp_path, "queue", status=1)
    assert result.stderr == f"InvalidDatabase: {database(tmp_path)}: database is locked\n"
