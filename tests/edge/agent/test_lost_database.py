"""A database that is deleted or replaced while the agent runs: it is noticed, without a restart."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.store import repair
from edge.store.pending import PendingStep
from edge.store.repair import damaged_databases
from edge.store.steps import Step
from tests.edge.agent.test_adopt import busy_site, database, work
from tests.edge.builders import put
from tests.edge.databases import open_store
from tests.edge.running_agent import statuses, whereabouts


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
def test_a_database_that_is_deleted_or_replaced_while_the_agent_runs_is_opened_again(
    tmp_path: Path, lose: Callable[[Path], None], at: tuple[Step, bool]
) -> None:
    """It does not write on into a file that nobody else can open; no restart is needed."""
    busy_site(tmp_path)
    put(tmp_path / "inbox", "f")
    left = [at]

    def on_step(step: Step | PendingStep, durable: bool) -> None:
        if left and (step, durable) == left[0]:
            left.pop()
            lose(database(tmp_path))

    with capture_logs() as logs:
        work(tmp_path, on_step=on_step)
    assert left == []
    told = [log for log in logs if log["event"].startswith("database deleted or replaced")]
    assert len(told) == 1
    assert "spool.sqlite3" in told[0]["reason"]
    assert whereabouts(tmp_path) == {**{name: ["done"] for name in "acdef"}, "b ü": ["quarantine"]}
    c = "provisional" if lose is remove_log else "final"  # the log is still open, and saved
    expected = dict.fromkeys("adef", "final") | {"b ü": "rejected", "c": c}
    assert statuses(tmp_path) == expected
    assert os.listdir(tmp_path / "state" / "work") == []
    assert damaged_databases(database(tmp_path)) == []
    with open_store(database(tmp_path)) as store:  # what any other process sees
        assert store.problem() == ""
        names = {record.name: record.step for record in store.at(*Step)}
        assert names == {**dict.fromkeys("acdef", Step.DONE), "b ü": Step.QUARANTINED}


def test_a_database_that_was_only_renamed_is_complete(tmp_path: Path) -> None:
    """What its log had is written into it before it is closed."""
    put(tmp_path / "inbox", "a")

    def on_step(step: Step | PendingStep, durable: bool) -> None:
        if step is Step.READING and durable:
            rename(database(tmp_path))

    work(tmp_path, on_step=on_step)
    with open_store(tmp_path / "state" / "mine") as store:
        assert [record.step for record in store.at(*Step)] == [Step.DONE]


def test_a_share_on_which_files_seem_to_be_replaced_by_themselves_keeps_no_study_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some give a file another number with each question."""
    numbers = count()
    monkeypatch.setattr(repair, "file_identities", lambda path: {path: (0, next(numbers))})
    for name in ("a", "b"):
        put(tmp_path / "inbox", name)
    work(tmp_path)
    assert statuses(tmp_path) == {"a": "final", "b": "final"}
    assert whereabouts(tmp_path) == {"a": ["done"], "b": ["done"]}


def test_a_state_folder_that_is_removed_while_the_agent_runs_is_made_again(tmp_path: Path) -> None:
    """The studies in it are gone; those that arrive afterwards are read and reported."""
    put(tmp_path / "inbox", "a")
    left = [1]

    def on_step(step: Step | PendingStep, durable: bool) -> None:
        if step is Step.DONE and durable and left:
            left.pop()
            shutil.rmtree(tmp_path / "state")
            put(tmp_path / "inbox", "b")

    work(tmp_path, on_step=on_step)
    assert statuses(tmp_path) == {"a": "final", "b": "final"}
    assert whereabouts(tmp_path) == {"b": ["done"]}
