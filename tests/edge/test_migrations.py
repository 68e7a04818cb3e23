"""A database of an older version opens in this one, and nothing of it is lost."""

import hashlib
import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest

from edge.database import BUSY_S, Migration, MigrationStep, OtherVersion, Schema, copies
from edge.settings.core import load_settings
from edge.store.record import Step
from edge.store.repair import open_or_replace
from edge.store.studies import StudyStore, all_migrations
from tests.edge.builders import nothing, open_claim, open_store, schema_of

LATER = (
    Migration(901, "ALTER TABLE studies ADD COLUMN x TEXT;"),
    Migration(902, "UPDATE studies SET x = 'new';\nCREATE TABLE y (z);"),
)
PROCESSES = multiprocessing.get_context("forkserver")
RELEASED = {
    1: "cdba89560851f6f0",
    2: "6f8bf77c827cf625",
    3: "44f2ba1331213b37",
    4: "bab484dd321c1726",
    5: "c7c94ef09ac7ae68",
}
"""SHA-256 of each migration, shortened."""


def later(path: Path, *more: Migration) -> Schema:
    """The schema of a later version of the program."""
    now = schema_of(path)
    return replace(now, migrations=(*now.migrations, *LATER, *more))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of the version before `LATER`, with a study."""
    path = tmp_path / "s.db"
    with open_store(path) as store:
        open_claim(store, "a")
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as opened:
        return list(opened.iterdump())


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as opened:
        return int(opened.execute("PRAGMA user_version").fetchone()[0])


def migrate(path: Path, crash: tuple[Enum, bool] | None = None, at: int = 0) -> None:
    """Open the database as a later agent does; die at the ``at``-th of the steps ``crash``."""
    left = at

    def on_step(step: Enum, durable: bool) -> None:
        nonlocal left
        if (step, durable) == crash:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    with open_or_replace(path, later(path), on_step) as store:
        (row,) = store.database.execute("SELECT report_name, x FROM studies")
        assert tuple(row) == ("a", "new")


KILLS: list[tuple[MigrationStep, bool, int]] = [
    (MigrationStep.BACKED_UP, False, 0),
    (MigrationStep.BACKED_UP, True, 0),
    *((MigrationStep.MIGRATED, False, at) for at in range(len(LATER))),
    (MigrationStep.MIGRATED, True, 0),
]


def test_a_kill_at_any_step_loses_nothing(path: Path) -> None:
    before = dump(path)
    for step, durable, at in KILLS:
        process = PROCESSES.Process(target=migrate, args=(path, (step, durable), at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (step, durable, at)
    migrate(path)
    (copy,) = copies(path)
    assert (copy.name, dump(copy)) == (f"{path.name}.version-5", before)
    assert copy.stat().st_mode & 0o077 == 0
    copy.replace(path)  # going back, and forward again
    migrate(path)


def test_a_newer_database_is_refused_and_stays_as_it_is(path: Path) -> None:
    migrate(path)
    after = dump(path)
    with pytest.raises(OtherVersion, match=r"version 902.*a newer Overread has used it"):
        open_or_replace(path, schema_of(path), nothing)
    assert (version_of(path), dump(path)) == (902, after)


def test_a_command_leaves_an_older_database_to_the_agent(path: Path) -> None:
    with pytest.raises(OtherVersion, match="start the agent, which migrates it"):
        StudyStore(path, later(path))


def test_a_migration_that_fails_changes_nothing_and_sets_nothing_aside(path: Path) -> None:
    before = dump(path)
    wrong = Migration(903, "ALTER TABLE nowhere ADD COLUMN x TEXT;")
    with pytest.raises(OtherVersion, match="migration 903 failed, and changed nothing"):
        open_or_replace(path, later(path, wrong), nothing)
    assert (version_of(path), dump(path)) == (5, before)


def test_a_change_of_the_tables_is_a_migration_with_the_next_number(tmp_path: Path) -> None:
    """What a database has had is not done again: a change of it would be lacking there."""
    assert {
        one.number: hashlib.sha256(one.script.encode()).hexdigest()[:16]
        for one in all_migrations(schema_of(tmp_path / "state" / "s.db"))
    } == RELEASED
    assert list(RELEASED) == list(range(1, len(RELEASED) + 1))


def test_waiting_for_who_holds_the_database_costs_no_deadline() -> None:
    """It is a small part of what is kept for writing the report."""
    assert load_settings().reserve_s / 4 >= BUSY_S


def test_a_locked_database_can_be_opened_and_read(tmp_path: Path) -> None:
    """A backup that runs while the agent starts is no reason to stop."""
    path = tmp_path / "s.db"
    with open_store(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with open_store(path) as store:
            assert store.at(*Step) == []
            assert store.pending.backlog() == (0, 0.0)
